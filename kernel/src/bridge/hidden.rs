//! Cells of the bridge's own, which nobody sees and which have no number. They run between a
//! person's cells, never beside one: evcxr runs one at a time.

use std::collections::VecDeque;

use jupyter_protocol::{ExecuteRequest, JupyterMessage};
use serde_json::Value;

use super::channels::Passing;

/// The hidden cells that wait, and the one that evcxr has.
#[derive(Default)]
pub(super) struct Hidden {
    waiting: VecDeque<Question>,
    running: Option<Running>,
    /// The message id of the last one: what it wrote can come after its end.
    last: String,
    /// The message ids of the requests that warm evcxr up.
    pub(super) warm_up: Vec<String>,
}

/// What a hidden cell is for.
#[derive(Debug)]
pub(super) enum Purpose {
    /// To list the variables.
    List,
    /// To have the variable of this name tell what it holds.
    Describe(String),
}

/// A hidden cell that is to run.
#[derive(Debug)]
pub(super) struct Question {
    pub(super) purpose: Purpose,
    pub(super) code: String,
}

struct Running {
    purpose: Purpose,
    answer: Answer,
    /// evcxr has replied; it has said that it is idle.
    replied: bool,
    idle: bool,
}

/// What came of a hidden cell.
#[derive(Debug, Default)]
pub(super) struct Answer {
    /// Whether evcxr calls it a success.
    pub(super) ok: bool,
    /// Its result by MIME type, or null. What it prints is not kept.
    pub(super) data: Value,
}

impl Hidden {
    pub(super) fn ask(&mut self, question: Question) {
        self.waiting.push_back(question);
    }

    /// Has one run before the others.
    pub(super) fn ask_first(&mut self, question: Question) {
        self.waiting.push_front(question);
    }

    pub(super) fn is_running(&self) -> bool {
        self.running.is_some()
    }

    /// Returns whether evcxr calls it done without having replied, if only for a moment.
    pub(super) fn lacks_reply(&self) -> bool {
        let running = self.running.as_ref();
        running.is_some_and(|running| running.idle && !running.replied)
    }

    /// Begins the next one: returns the request for evcxr.
    pub(super) fn next(&mut self) -> Option<JupyterMessage> {
        let Question { purpose, code } = self.waiting.pop_front()?;
        let request = JupyterMessage::new(ExecuteRequest::new(code), None);
        self.last.clone_from(&request.header.msg_id);
        self.running = Some(Running {
            purpose,
            answer: Answer::default(),
            replied: false,
            idle: false,
        });
        Some(request)
    }

    /// Takes a message of evcxr's that belongs to a hidden cell or to the warm-up; returns whether it
    /// does.
    pub(super) fn takes(&mut self, message: &Passing) -> bool {
        let parent = message.parent.as_ref().map(|parent| &parent.msg_id);
        if parent != Some(&self.last) {
            return parent.is_some_and(|id| self.warm_up.contains(id));
        }
        if let Some(running) = &mut self.running {
            match message.kind() {
                "execute_reply" => {
                    running.replied = true;
                    running.answer.ok = message.content["status"] == "ok";
                }
                "status" => running.idle = message.content["execution_state"] == "idle",
                "execute_result" => running.answer.data.clone_from(&message.content["data"]),
                _ => {}
            }
        }
        true
    }

    /// Returns what came of the one that was running, once evcxr is through with it.
    pub(super) fn end(&mut self) -> Option<(Purpose, Answer)> {
        let through = |running: &mut Running| running.replied && running.idle;
        let Running {
            purpose, answer, ..
        } = self.running.take_if(through)?;
        Some((purpose, answer))
    }
}
