//! What Jupyter's clients ask for, and what the bridge answers without evcxr: at once, while a cell
//! runs as well, which evcxr does not.

use std::ops::ControlFlow;
use std::time::Duration;

use jupyter_protocol::{
    CommInfoReply, CompleteReply, HistoryReply, InspectReply, InterruptReply, IoPubWelcome,
    JupyterMessage, JupyterMessageContent, ReplyError, ReplyStatus, ShutdownReply, Status,
    StreamContent,
};
use tokio::time::Instant;
use zeromq::ZmqMessage;

use super::channels::{Passing, pass, send};
use super::complete::is_complete;
use super::info::kernel_info;
use super::{Bridge, LAST_WORDS, NEXT_BUILD};

/// How long a second Stop after a first is taken as meant.
const SECOND_STOP: Duration = Duration::from_secs(5);

/// How long the first request waits for a client to listen to what is published: Jupyter allows for
/// clients that never do.
const SUBSCRIPTION: Duration = Duration::from_secs(1);

/// The channel that a request came by.
#[derive(Clone, Copy)]
pub(super) enum Channel {
    Shell,
    Control,
}

impl Bridge {
    /// A client can hear what is published from now on.
    pub(super) async fn welcome(&mut self, topic: String) {
        let welcome = JupyterMessage::new(IoPubWelcome::new(topic), None);
        send(welcome, &mut self.front.iopub, "welcome").await;
        self.begin().await;
    }

    /// A request on the shell channel. The first one is held back until a client can hear what is
    /// published: some of them (VS Code) ask first, then wait for ever to hear the end of it.
    pub(super) async fn request(&mut self, message: ZmqMessage) {
        if self.is_heard {
            self.take_request(message).await;
        } else {
            self.held_back = Some((message, Instant::now() + SUBSCRIPTION));
        }
    }

    /// Takes requests from now on, first the one that was held back.
    pub(super) async fn begin(&mut self) {
        self.is_heard = true;
        if let Some((message, _)) = self.held_back.take() {
            self.take_request(message).await;
        }
    }

    async fn take_request(&mut self, message: ZmqMessage) {
        let request = match Passing::read(message, &self.front.shell) {
            Ok(request) => request,
            Err(error) => return eprintln!("a request was refused: {error:#}"),
        };
        if request.kind() == "execute_request" {
            self.waiting.push_back(request);
            self.next_cell().await;
            // They do not wait for a person's cell.
            self.answer_debug_requests().await;
        } else if let Some(content) = self.own_answer(&request) {
            self.answer(&request, content, Channel::Shell).await;
        } else {
            match &mut self.evcxr {
                Ok(evcxr) => pass(request.message, &mut evcxr.back.shell, "request").await,
                Err(_) => {
                    if let Some(content) = nothing_found(request.kind()) {
                        self.answer(&request, content, Channel::Shell).await;
                    }
                }
            }
        }
    }

    /// A request on the control channel; breaks where it is the one to end.
    pub(super) async fn control(&mut self, message: ZmqMessage) -> ControlFlow<()> {
        let request = match Passing::read(message, &self.front.control) {
            Ok(request) => request,
            Err(error) => {
                eprintln!("a request was refused: {error:#}");
                return ControlFlow::Continue(());
            }
        };
        match request.kind() {
            "interrupt_request" => self.interrupt(request).await,
            "shutdown_request" => {
                self.shut_down(&request).await;
                return ControlFlow::Break(());
            }
            "usage_request" => {
                let usage = self.usage.answer();
                self.answer(&request, usage, Channel::Control).await;
            }
            "debug_request" => {
                self.publish(&request.header, Status::busy()).await;
                self.answer_debug_request(request).await;
            }
            _ => match (self.own_answer(&request), &mut self.evcxr) {
                (Some(content), _) => self.answer(&request, content, Channel::Control).await,
                (None, Ok(evcxr)) => {
                    pass(request.message, &mut evcxr.back.control, "control").await;
                }
                (None, Err(_)) => {}
            },
        }
        ControlFlow::Continue(())
    }

    /// Returns the answer to a request that does not need evcxr.
    fn own_answer(&self, request: &Passing) -> Option<JupyterMessageContent> {
        Some(match request.kind() {
            "kernel_info_request" => kernel_info(&self.rustc).into(),
            // evcxr closes every comm that is opened.
            "comm_info_request" => CommInfoReply::default().into(),
            "history_request" => match self.history.answer(&request.content) {
                Ok(reply) => reply.into(),
                Err(error) => HistoryReply {
                    status: ReplyStatus::Error,
                    error: Some(Box::new(ReplyError {
                        ename: "HistoryError".to_owned(),
                        evalue: format!("{error:#}"),
                        traceback: Vec::new(),
                    })),
                    history: Vec::new(),
                }
                .into(),
            },
            "is_complete_request" => {
                is_complete(request.content["code"].as_str().unwrap_or_default()).into()
            }
            _ => return None,
        })
    }

    /// Sends the answer to a request, between `busy` and `idle`.
    pub(super) async fn answer(
        &mut self,
        request: &Passing,
        content: impl Into<JupyterMessageContent>,
        channel: Channel,
    ) {
        self.publish(&request.header, Status::busy()).await;
        self.finish(request, content, channel).await;
    }

    /// Sends the answer to a request, then `idle`.
    pub(super) async fn finish(
        &mut self,
        request: &Passing,
        content: impl Into<JupyterMessageContent>,
        channel: Channel,
    ) {
        let connection = match channel {
            Channel::Shell => &mut self.front.shell,
            Channel::Control => &mut self.front.control,
        };
        send(request.answer(content), connection, "reply").await;
        self.publish(&request.header, Status::idle()).await;
        // JupyterLab shows the last state that it hears of, whoever is idle.
        if let Some(cell) = &self.cell {
            let header = cell.request.header.clone();
            self.publish(&header, Status::busy()).await;
        }
    }

    /// Stop. It ends what compiles; or asks the cell to end, if that listens; or warns, and the
    /// next time ends the process in which cells run.
    async fn interrupt(&mut self, request: Passing) {
        let now = Instant::now();
        let meant = self.warned.is_some_and(|warned| now - warned < SECOND_STOP);
        if let (Some(cell), Ok(evcxr)) = (&mut self.cell, &mut self.evcxr) {
            if evcxr.stop_build() {
                cell.stopped = true;
                cell.ends_build = Some(now + NEXT_BUILD);
            } else if !cell.asked && evcxr.events.stop() {
                cell.asked = true;
                cell.stopped = true;
            } else if meant {
                cell.stopped = true;
                self.warned = None;
                return pass(request.message, &mut evcxr.back.control, "control").await;
            } else {
                self.warned = Some(now);
                let header = cell.request.header.clone();
                let why = if cell.asked { NOT_ENDED } else { NOT_LISTENING };
                let warning = StreamContent::stderr(&format!("{why} {STOP_AGAIN}\n"));
                self.flush().await;
                self.publish(&header, warning).await;
            }
        } else {
            self.abort_waiting().await;
        }
        let reply = request.answer(InterruptReply::new());
        send(reply, &mut self.front.control, "control").await;
    }

    /// Answers the request to end. evcxr is not asked: it would end with its cell, which may never.
    async fn shut_down(&mut self, request: &Passing) {
        self.flush().await;
        let reply = request.answer(ShutdownReply {
            restart: request.content["restart"] == true,
            ..ShutdownReply::default()
        });
        send(reply, &mut self.front.control, "control").await;
        // Time for it to leave.
        tokio::time::sleep(LAST_WORDS).await;
    }
}

const NOT_LISTENING: &str = "This cell does not listen to Stop.";
const NOT_ENDED: &str = "This cell was asked to stop and has not ended yet.";
const STOP_AGAIN: &str = "Stop again within 5 seconds to end the process that runs it: all \
                          variables will be lost.";

/// Returns the answer to what only evcxr knows, where there is none.
fn nothing_found(kind: &str) -> Option<JupyterMessageContent> {
    match kind {
        "complete_request" => Some(CompleteReply::default().into()),
        "inspect_request" => Some(InspectReply::default().into()),
        _ => None,
    }
}
