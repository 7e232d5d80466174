//! Which cell evcxr has and which it gets next, and how one ends.

use jupyter_protocol::{
    ErrorOutput, ExecuteInput, ExecuteReply, ExecutionCount, Header, ReplyError, ReplyStatus,
    Status, StreamContent,
};

use super::cell::Cell;
use super::channels::{Passing, pass, send};
use super::hidden::{Purpose, Question};
use super::{Bridge, numbered};

impl Bridge {
    /// Gives evcxr the next cell if it has none, or else the next hidden one.
    pub(super) async fn next_cell(&mut self) {
        let evcxr = loop {
            match &mut self.evcxr {
                Ok(evcxr) => break evcxr,
                Err(error) => {
                    let error = error.clone();
                    let Some(request) = self.waiting.pop_front() else {
                        return;
                    };
                    self.refuse(request, error).await;
                }
            }
        };
        if self.cell.is_some() || self.hidden.is_running() {
            return;
        }
        if let Some(request) = self.waiting.pop_front() {
            self.warned = None;
            self.last_cell = Some(request.header.clone());
            pass(request.message.clone(), &mut evcxr.back.shell, "cell").await;
            let cell = Cell::new(request, self.count);
            if cell.number > self.count {
                self.history.push(cell.number, cell.code());
            }
            self.count = cell.number;
            self.cell = Some(cell);
        } else {
            self.next_hidden().await;
        }
    }

    /// Gives evcxr, which is free, the next hidden cell.
    pub(super) async fn next_hidden(&mut self) {
        if let Ok(evcxr) = &mut self.evcxr
            && let Some(request) = self.hidden.next()
        {
            send(request, &mut evcxr.back.shell, "hidden cell").await;
        }
    }

    /// Has a hidden cell run as soon as no other cell is to run.
    pub(super) async fn ask(&mut self, question: Question) {
        self.hidden.ask(question);
        self.next_cell().await;
    }

    /// Goes on after a hidden cell, if that has come to its end.
    pub(super) async fn end_hidden(&mut self) {
        if let Some((purpose, answer)) = self.hidden.end() {
            match purpose {
                Purpose::List => self.variables.learn(&answer),
                Purpose::Describe(name) => self.variables.learn_content(&name, answer),
            }
            self.next_cell().await;
            self.answer_debug_requests().await;
        }
    }

    /// Returns the cell that evcxr has, if a message with this parent belongs to it.
    pub(super) fn cell_of(&mut self, parent: Option<&Header>) -> Option<&mut Cell> {
        let id = &parent?.msg_id;
        self.cell
            .as_mut()
            .filter(|cell| cell.request.header.msg_id == *id)
    }

    /// Answers a cell that cannot be run.
    pub(super) async fn refuse(&mut self, request: Passing, error: ErrorOutput) {
        let cell = Cell::new(request, self.count);
        self.count = cell.number;
        self.cell = Some(cell);
        self.announce().await;
        self.fail(error).await;
    }

    /// Publishes that a cell begins, where evcxr does not.
    pub(super) async fn announce(&mut self) {
        if let Some(cell) = &self.cell {
            let header = cell.request.header.clone();
            let input = ExecuteInput {
                code: cell.code().to_owned(),
                execution_count: ExecutionCount::new(cell.number),
            };
            self.publish(&header, Status::busy()).await;
            self.publish(&header, input).await;
        }
    }

    /// Ends the cell that there is with an error.
    pub(super) async fn fail(&mut self, error: ErrorOutput) {
        if let Some(cell) = &mut self.cell {
            let header = cell.request.header.clone();
            cell.error = Some(error.clone());
            self.publish(&header, error).await;
            self.end_cell().await;
        }
    }

    /// Passes on the reply to a cell, as an error where it failed.
    pub(super) async fn end_cell(&mut self) {
        self.hide_build().await;
        self.flush().await;
        let Some(mut cell) = self.cell.take() else {
            return;
        };
        self.variables.note_cell(cell.code());
        let header = cell.request.header.clone();
        for (id, data) in std::mem::take(&mut self.displays) {
            self.display(header.clone(), "display_data", &id, data)
                .await;
        }
        if let Some(error) = cell.failure(&self.build.folder) {
            self.publish(&header, error.clone()).await;
            cell.error = Some(error);
        } else if !cell.notes.is_empty() {
            let text = cell.notes.join("\n") + "\n";
            self.publish(&header, StreamContent::stderr(&text)).await;
        }
        let failed = cell.error.is_some();
        let content = if let Some(error) = cell.error {
            execute_error(cell.number, error)
        } else {
            let content = cell.reply.map(|reply| numbered(reply.content, cell.number));
            content
                .and_then(|content| serde_json::from_value(content).ok())
                .unwrap_or_default()
        };
        let reply = cell.request.answer(content);
        send(reply, &mut self.front.shell, "reply").await;
        if failed || cell.stopped {
            self.abort_waiting().await;
        }
        self.publish(&header, Status::idle()).await;
    }

    /// Answers the cells that wait that they will not be run, as IPython does after an error.
    pub(super) async fn abort_waiting(&mut self) {
        for request in std::mem::take(&mut self.waiting) {
            if request.content["stop_on_error"] == false {
                self.waiting.push_back(request);
                continue;
            }
            self.publish(&request.header, Status::busy()).await;
            let reply = request.answer(ExecuteReply {
                status: ReplyStatus::Aborted,
                ..ExecuteReply::default()
            });
            send(reply, &mut self.front.shell, "reply").await;
            self.publish(&request.header, Status::idle()).await;
        }
    }
}

/// Returns the reply to a cell that failed.
fn execute_error(number: usize, error: ErrorOutput) -> ExecuteReply {
    ExecuteReply {
        status: ReplyStatus::Error,
        execution_count: ExecutionCount::new(number),
        error: Some(Box::new(ReplyError {
            ename: error.ename,
            evalue: error.evalue,
            traceback: error.traceback,
        })),
        ..ExecuteReply::default()
    }
}
