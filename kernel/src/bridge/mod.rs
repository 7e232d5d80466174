//! Between Jupyter and evcxr: the same protocol on both sides, most of it passed on as it comes.
//!
//! What it adds is told in `events` (what the code in a cell can say), `cell` (what becomes of a
//! cell), `hidden` (cells of the bridge's own), `variables` (what the panel of variables shows) and
//! `build` (what is shown while dependencies compile).

mod build;
mod cell;
mod channels;
mod compiler;
mod events;
mod guard;
mod hidden;
mod text;
mod variables;

use std::collections::{BTreeMap, VecDeque};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::{ExitCode, Stdio};
use std::time::Duration;

use anyhow::Context as _;
use jupyter_protocol::{
    ClearOutput, DebugReply, ErrorOutput, ExecuteReply, ExecutionState, Header, InterruptReply,
    JupyterMessage, JupyterMessageContent, ReplyError, ReplyStatus, ShutdownReply, Status,
    Stdio as Stream, StreamContent, UnknownMessage,
};
use serde_json::{Map, Value, json};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::Command;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{Instant, sleep_until};
use zeromq::{SocketRecv as _, SocketSend as _, ZmqMessage};

use build::Build;
use cell::Cell;
use channels::{Back, Front, Passing, child_of, pass, send};
use events::{Event, Events};
use guard::Guard;
use hidden::{Hidden, Purpose, Question};
use text::{Piece, pieces};
use variables::{Response, Turn, Variables};

pub use cell::PLACE_ENDS;
pub use events::{SOCKET, VERSION};
pub use text::MARK;

/// How long a second Stop after a first is taken as meant.
const SECOND_STOP: Duration = Duration::from_secs(5);

/// How long text is held back, so that lines written one after the other travel together.
const GATHERING: Duration = Duration::from_millis(10);

/// How long a cell's last words may take: evcxr says that a cell is done, and passes on what it
/// wrote, by different ways.
const LAST_WORDS: Duration = Duration::from_millis(5);
/// A failure's are on stderr, which takes longer.
const LAST_WORDS_OF_FAILURE: Duration = Duration::from_millis(30);

/// How often a cell whose build was ended is looked at: evcxr tries a failed one in other ways.
const NEXT_BUILD: Duration = Duration::from_millis(100);

/// Starts `evcxr`, which takes a connection file as its last argument and builds in `build_folder`,
/// and serves the connection that Jupyter's file describes until Jupyter ends it or evcxr is gone.
/// Nothing that evcxr has started is left then.
///
/// # Errors
///
/// The file cannot be read, a port is taken, evcxr cannot be started.
pub fn run(
    connection_file: &Path,
    evcxr: std::process::Command,
    build_folder: PathBuf,
) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let guard = Guard::start()?;
        let mut evcxr = evcxr.into();
        guard.keep(&mut evcxr)?;
        let served = serve(connection_file, evcxr, build_folder).await;
        guard.end().await;
        served
    })
}

async fn serve(
    connection_file: &Path,
    mut evcxr: Command,
    build_folder: PathBuf,
) -> anyhow::Result<ExitCode> {
    let parent = std::os::unix::process::parent_id();
    let outer = channels::read_connection(connection_file)?;
    let inner = channels::inner_connection(&outer).await?;
    let session = JupyterMessage::new(Status::idle(), None).header.session;
    let front = Front::bind(&outer, &session).await?;
    let events = Events::listen()?;
    let inner_file = events.path().with_file_name("connection.json");
    std::fs::write(&inner_file, serde_json::to_vec(&inner)?)?;

    let mut child = evcxr
        .arg(&inner_file)
        .env(SOCKET, events.path())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .context("cannot start evcxr")?;
    let mut log = BufReader::new(child.stderr.take().context("evcxr's stderr")?).lines();
    let back = tokio::select! {
        back = Back::connect(&inner, &session) => back?,
        status = child.wait() => anyhow::bail!("evcxr ended at its start: {}", status?),
        () = async { while let Ok(Some(line)) = log.next_line().await { eprintln!("{line}"); } } => {
            anyhow::bail!("evcxr ended at its start: {}", child.wait().await?)
        }
    };
    let mut bridge = Bridge {
        front,
        back,
        events,
        evcxr: child.id(),
        build: Build::in_folder(build_folder),
        displays: BTreeMap::new(),
        cell: None,
        last_cell: None,
        waiting: VecDeque::new(),
        count: 0,
        hidden: Hidden::default(),
        variables: Variables::default(),
        text: None,
        warned: None,
    };

    let mut look_at_parent = tokio::time::interval(Duration::from_secs(1));
    let mut ended = signal(SignalKind::terminate())?;
    let mut interrupted = signal(SignalKind::interrupt())?;
    let mut log_open = true;
    let code = loop {
        let due = bridge.due();
        let Bridge {
            front,
            back,
            events,
            ..
        } = &mut bridge;
        tokio::select! {
            // First what has to work however much a cell writes; then what it told, which its lines
            // refer to; then what it wrote, before what follows from its end.
            biased;
            message = front.control.socket.recv() => if let Some(message) = received(message).await
                && bridge.control(message).await.is_break()
            {
                break ExitCode::SUCCESS;
            },
            beat = front.heartbeat.socket.recv() => if let Some(beat) = received(beat).await
                && let Err(error) = front.heartbeat.socket.send(beat).await
            {
                eprintln!("heartbeat: {error}");
            },
            _ = ended.recv() => break ExitCode::FAILURE,
            // Stop comes as a message; a Ctrl-C in Jupyter's terminal is Jupyter's.
            _ = interrupted.recv() => {}
            _ = look_at_parent.tick() => {
                if std::os::unix::process::parent_id() != parent {
                    eprintln!("Jupyter is gone");
                    break ExitCode::FAILURE;
                }
                bridge.show_build().await;
            }
            Some(event) = events.coming.recv() => bridge.take(event).await,
            message = back.iopub.socket.recv() => if let Some(message) = received(message).await {
                bridge.output(message).await;
            },
            message = back.shell.socket.recv() => if let Some(message) = received(message).await {
                bridge.reply(message).await;
            },
            message = front.shell.socket.recv() => if let Some(message) = received(message).await {
                bridge.request(message).await;
            },
            message = back.control.socket.recv() => if let Some(message) = received(message).await {
                pass(message, &mut front.control, "control").await;
            },
            message = front.stdin.socket.recv() => if let Some(message) = received(message).await {
                pass(message, &mut back.stdin, "input").await;
            },
            message = back.stdin.socket.recv() => if let Some(message) = received(message).await {
                pass(message, &mut front.stdin, "input").await;
            },
            line = log.next_line(), if log_open => match line {
                Ok(Some(line)) => bridge.log(&line).await,
                _ => log_open = false,
            },
            () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {
                bridge.on_time().await;
            }
            status = child.wait() => {
                let status = status?;
                bridge.flush().await;
                eprintln!("evcxr ended: {status}");
                break ExitCode::FAILURE;
            }
        }
    };
    // Waited for: with evcxr goes its lock on the build folder, which a restart takes again.
    let _killed = child.kill().await;
    Ok(code)
}

/// Returns what has been received. That a client has gone in the middle of it ends nothing.
async fn received(message: zeromq::ZmqResult<ZmqMessage>) -> Option<ZmqMessage> {
    match message {
        Ok(message) => Some(message),
        Err(error) => {
            eprintln!("a message was lost: {error}");
            // Should that go on for ever.
            tokio::time::sleep(LAST_WORDS).await;
            None
        }
    }
}

struct Bridge {
    front: Front,
    back: Back,
    events: Events,
    /// evcxr's process.
    evcxr: Option<u32>,
    build: Build,
    /// What is to be shown once stdout says where.
    displays: BTreeMap<String, Map<String, Value>>,
    /// The cell that evcxr has.
    cell: Option<Cell>,
    /// The header of the last cell, which what comes late belongs to.
    last_cell: Option<Header>,
    /// Cells that evcxr does not have yet: it would go on with them after a failure.
    waiting: VecDeque<Passing>,
    /// The number of the last cell: evcxr counts from 2, and the hidden ones as well.
    count: usize,
    hidden: Hidden,
    variables: Variables,
    /// Text held back, whether it is of stderr, and until when.
    text: Option<(Header, bool, String, Instant)>,
    /// When Stop was last answered with a warning.
    warned: Option<Instant>,
}

impl Bridge {
    /// Returns when something is to be done that no message brings about.
    fn due(&self) -> Option<Instant> {
        let text = self.text.as_ref().map(|(.., until)| *until);
        let cell = self.cell.as_ref();
        let end = cell.and_then(|cell| cell.ends);
        let build = cell.and_then(|cell| cell.ends_build);
        [text, end, build].into_iter().flatten().min()
    }

    async fn on_time(&mut self) {
        let now = Instant::now();
        if let Some(cell) = &mut self.cell
            && cell.ends_build.is_some_and(|build| build <= now)
        {
            compiler::stop(self.evcxr);
            cell.ends_build = Some(now + NEXT_BUILD);
        }
        let end = self.cell.as_ref().and_then(|cell| cell.ends);
        if end.is_some_and(|end| end <= now) {
            self.end_cell().await;
        } else {
            self.flush().await;
        }
    }

    /// A request on the shell channel.
    async fn request(&mut self, message: ZmqMessage) {
        match Passing::read(message, &self.front.shell) {
            Ok(request) if request.kind() == "execute_request" => {
                self.waiting.push_back(request);
                self.next_cell().await;
                self.answer_debug_requests().await;
            }
            Ok(request) => pass(request.message, &mut self.back.shell, "request").await,
            Err(error) => eprintln!("a request was refused: {error:#}"),
        }
    }

    /// Gives evcxr the next cell if it has none, or else the next hidden one.
    async fn next_cell(&mut self) {
        if self.cell.is_some() || self.hidden.is_running() {
            return;
        }
        if let Some(request) = self.waiting.pop_front() {
            self.warned = None;
            self.last_cell = Some(request.header.clone());
            pass(request.message.clone(), &mut self.back.shell, "cell").await;
            let cell = Cell::new(request, self.count);
            self.count = cell.number;
            self.cell = Some(cell);
        } else {
            self.next_hidden().await;
        }
    }

    /// Gives evcxr, which is free, the next hidden cell.
    async fn next_hidden(&mut self) {
        if let Some(request) = self.hidden.next() {
            send(request, &mut self.back.shell, "hidden cell").await;
        }
    }

    /// An answer on the shell channel.
    async fn reply(&mut self, message: ZmqMessage) {
        let reply = match Passing::read(message, &self.back.shell) {
            Ok(reply) => reply,
            Err(error) => return eprintln!("evcxr's reply: {error:#}"),
        };
        if self.hidden.takes(&reply) {
            return self.end_hidden().await;
        }
        if reply.kind() == "kernel_info_reply" {
            let reply = reply.with_content(with_debugger(&reply.content));
            return send(reply, &mut self.front.shell, "reply").await;
        }
        if reply.kind() == "execute_reply"
            && let Some(cell) = self.cell_of(reply.parent.as_ref())
        {
            cell.reply = Some(reply);
            return cell.ends_if_told();
        }
        pass(reply.message, &mut self.front.shell, "reply").await;
    }

    /// Returns the cell that evcxr has, if a message with this parent belongs to it.
    fn cell_of(&mut self, parent: Option<&Header>) -> Option<&mut Cell> {
        let id = &parent?.msg_id;
        self.cell
            .as_mut()
            .filter(|cell| cell.request.header.msg_id == *id)
    }

    /// Something that evcxr publishes.
    async fn output(&mut self, message: ZmqMessage) {
        let output = match Passing::read(message, &self.back.iopub) {
            Ok(output) => output,
            Err(error) => return eprintln!("evcxr's output: {error:#}"),
        };
        if self.hidden.takes(&output) {
            // What writes is a thread that a person's cell has left.
            if let ("stream", Some(parent)) = (output.kind(), self.last_cell.clone()) {
                self.write(&parent, &output.content).await;
            }
            return self.end_hidden().await;
        }
        if let ("stream", Some(parent)) = (output.kind(), &output.parent) {
            return self.write(parent, &output.content).await;
        }
        if let Some(cell) = self.cell_of(output.parent.as_ref()) {
            match output.kind() {
                "status" if output.content["execution_state"] == "idle" => {
                    cell.idle = Some(output);
                    return cell.ends_if_told();
                }
                "error" => {
                    cell.error = serde_json::from_value(output.content.clone()).ok();
                    self.hide_build().await;
                }
                "execute_result" | "display_data" => self.hide_build().await,
                _ => {}
            }
        }
        self.flush().await;
        match self.cell_of(output.parent.as_ref()).map(|cell| cell.number) {
            Some(number) if output.content.get(COUNT).is_some() => {
                let content = numbered(output.content.clone(), number);
                match JupyterMessageContent::from_type_and_content(output.kind(), content) {
                    Ok(content) => {
                        let output = output.with_content(content);
                        send(output, &mut self.front.iopub, "output").await;
                    }
                    Err(error) => eprintln!("evcxr's output: {error:#}"),
                }
            }
            _ => pass(output.message, &mut self.front.iopub, "output").await,
        }
    }

    /// Has a hidden cell run as soon as no other cell is to run.
    async fn ask(&mut self, question: Question) {
        self.hidden.ask(question);
        self.next_cell().await;
    }

    /// Goes on after a hidden cell, if that has come to its end.
    async fn end_hidden(&mut self) {
        if let Some((purpose, answer)) = self.hidden.end() {
            match purpose {
                Purpose::List => self.variables.learn(&answer),
                Purpose::Describe(name) => self.variables.learn_content(&name, answer),
            }
            self.next_cell().await;
            self.answer_debug_requests().await;
        }
    }

    /// Looks anew at the requests of the debug protocol that wait.
    async fn answer_debug_requests(&mut self) {
        for request in std::mem::take(&mut self.variables.waiting) {
            self.answer_debug_request(request).await;
        }
    }

    async fn answer_debug_request(&mut self, request: Passing) {
        let turn = if self.cell.is_some() || !self.waiting.is_empty() {
            Turn::Late
        } else if self.hidden.is_running() {
            Turn::Next
        } else {
            Turn::Now
        };
        match self.variables.respond(&request.content, turn) {
            Response::Reply(content) => {
                let reply = request.answer(DebugReply { content });
                send(reply, &mut self.front.control, "control").await;
                if request.content["command"] == "attach" {
                    // Has JupyterLab open the panel.
                    self.publish(&request.header, variables::event("initialized"))
                        .await;
                }
                self.publish(&request.header, Status::idle()).await;
            }
            Response::Ask(question) => {
                self.variables.waiting.push(request);
                self.ask(question).await;
            }
            Response::Wait => self.variables.waiting.push(request),
        }
    }

    /// Takes what a cell wrote.
    async fn write(&mut self, parent: &Header, content: &Value) {
        let text = content["text"].as_str().unwrap_or_default();
        let stderr = content["name"] == "stderr";
        self.hide_build().await;
        if stderr && let Some(cell) = self.cell_of(Some(parent)) {
            cell.stderr.push_str(text);
        }
        for piece in pieces(text) {
            match piece {
                Piece::Text(text) => self.gather(parent, stderr, text).await,
                Piece::Show(id) => {
                    self.flush().await;
                    if let Some(data) = self.displays.remove(id) {
                        self.display(parent.clone(), "display_data", id, data).await;
                    }
                }
            }
        }
    }

    /// Holds text back for a moment, after sending what is of another kind.
    async fn gather(&mut self, parent: &Header, stderr: bool, text: &str) {
        if let Some((of, held, gathered, _)) = &mut self.text
            && of.msg_id == parent.msg_id
            && *held == stderr
        {
            gathered.push_str(text);
            return;
        }
        self.flush().await;
        let until = Instant::now() + GATHERING;
        self.text = Some((parent.clone(), stderr, text.to_owned(), until));
    }

    /// Sends the text that was held back.
    async fn flush(&mut self) {
        if let Some((parent, stderr, text, _)) = self.text.take() {
            let name = if stderr {
                Stream::Stderr
            } else {
                Stream::Stdout
            };
            self.publish(&parent, StreamContent { name, text }).await;
        }
    }

    async fn publish(&mut self, parent: &Header, content: impl Into<JupyterMessageContent>) {
        send(child_of(parent, content), &mut self.front.iopub, "output").await;
    }

    async fn display(&mut self, parent: Header, kind: &str, id: &str, data: Map<String, Value>) {
        let content = json!({"data": data, "metadata": {}, "transient": {"display_id": id}});
        match JupyterMessageContent::from_type_and_content(kind, content) {
            Ok(content) => self.publish(&parent, content).await,
            Err(error) => eprintln!("a display was not understood: {error}"),
        }
    }

    /// Takes what the cell's code told.
    async fn take(&mut self, event: Event) {
        match event {
            Event::Display { id, data } => {
                self.displays.insert(id, data);
            }
            Event::Update { id, data } => {
                if let Some(shown_soon) = self.displays.get_mut(&id) {
                    *shown_soon = data;
                } else if let Some(parent) = self.last_cell.clone() {
                    self.flush().await;
                    self.display(parent, "update_display_data", &id, data).await;
                }
            }
            Event::Note { text } => {
                if let Some(cell) = &mut self.cell {
                    cell.notes.push(text);
                }
            }
            Event::Failed => {
                if let Some(cell) = &mut self.cell {
                    cell.failed = true;
                }
            }
            Event::Listen => {}
        }
    }

    /// A request on the control channel; breaks where it is the one to end.
    async fn control(&mut self, message: ZmqMessage) -> ControlFlow<()> {
        match Passing::read(message, &self.front.control) {
            Ok(request) => match request.kind() {
                "interrupt_request" => self.interrupt(request).await,
                "debug_request" => {
                    self.publish(&request.header, Status::busy()).await;
                    self.answer_debug_request(request).await;
                }
                "shutdown_request" => {
                    self.shut_down(&request).await;
                    return ControlFlow::Break(());
                }
                _ => pass(request.message, &mut self.back.control, "control").await,
            },
            Err(error) => eprintln!("a request was refused: {error:#}"),
        }
        ControlFlow::Continue(())
    }

    /// Stop.
    async fn interrupt(&mut self, request: Passing) {
        let now = Instant::now();
        let meant = self.warned.is_some_and(|warned| now - warned < SECOND_STOP);
        if let Some(cell) = &mut self.cell {
            if self.events.stop() {
                cell.stopped = true;
            } else if compiler::stop(self.evcxr) {
                cell.stopped = true;
                cell.ends_build = Some(now + NEXT_BUILD);
            } else if meant {
                // evcxr ends the process in which cells run.
                cell.stopped = true;
                self.warned = None;
                return pass(request.message, &mut self.back.control, "control").await;
            } else {
                self.warned = Some(now);
                let header = cell.request.header.clone();
                self.flush().await;
                self.publish(&header, StreamContent::stderr(CANNOT_STOP))
                    .await;
            }
        } else {
            // Those that a hidden cell holds up.
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

    /// Passes on the reply to a cell, as an error where it failed, and goes on to the next.
    async fn end_cell(&mut self) {
        self.hide_build().await;
        self.flush().await;
        let Some(mut cell) = self.cell.take() else {
            return;
        };
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
        if let Some(reply) = cell.reply.take() {
            let content = execute_reply(&reply.content, cell.number, cell.error.take());
            send(reply.with_content(content), &mut self.front.shell, "reply").await;
        }
        if failed || cell.stopped {
            self.abort_waiting().await;
        }
        if let Some(idle) = cell.idle.take() {
            pass(idle.message, &mut self.front.iopub, "status").await;
        }
        // Before a cell that waits, too, which may run for an hour; this takes milliseconds.
        self.variables
            .note_cell(cell.request.content["code"].as_str().unwrap_or_default());
        self.hidden.ask_first(self.variables.list());
        self.next_hidden().await;
    }

    /// Answers the cells that wait that they will not be run, as IPython does after an error.
    async fn abort_waiting(&mut self) {
        for request in std::mem::take(&mut self.waiting) {
            if request.content["stop_on_error"] == false {
                self.waiting.push_back(request);
                continue;
            }
            let status = |execution_state| Status { execution_state };
            self.publish(&request.header, status(ExecutionState::Busy))
                .await;
            let reply = request.answer(ExecuteReply {
                status: ReplyStatus::Aborted,
                ..ExecuteReply::default()
            });
            send(reply, &mut self.front.shell, "reply").await;
            self.publish(&request.header, status(ExecutionState::Idle))
                .await;
        }
    }

    /// A line that evcxr, or cargo below it, wrote to the kernel's own stderr.
    async fn log(&mut self, line: &str) {
        eprintln!("{line}");
        if self.cell.is_some() && self.build.compiles(line) {
            self.show_build().await;
        }
    }

    /// Shows, or shows anew, what is being compiled.
    async fn show_build(&mut self) {
        let Some(header) = self.cell.as_ref().map(|cell| cell.request.header.clone()) else {
            return;
        };
        if let Some((kind, id, text)) = self.build.news() {
            let data = Map::from_iter([("text/plain".to_owned(), Value::from(text))]);
            self.display(header, kind, &id, data).await;
        }
    }

    /// Takes away what was shown about a build: the cell's code runs now, or cannot.
    async fn hide_build(&mut self) {
        if self.build.end()
            && let Some(header) = self.cell.as_ref().map(|cell| cell.request.header.clone())
        {
            self.publish(&header, ClearOutput { wait: false }).await;
        }
    }
}

const CANNOT_STOP: &str = "This cell does not listen to Stop. Stop again within 5 seconds to end \
                           the process that runs it: all variables will be lost.\n";

/// Where messages hold the number of a cell.
const COUNT: &str = "execution_count";

/// Returns a message's content with the number that the bridge gives the cell.
fn numbered(mut content: Value, number: usize) -> Value {
    content[COUNT] = number.into();
    content
}

/// Returns evcxr's `kernel_info_reply`, which also says that there is a panel of variables.
fn with_debugger(content: &Value) -> UnknownMessage {
    let mut content = content.clone();
    content["debugger"] = true.into();
    content["supported_features"] = json!(["debugger"]);
    UnknownMessage {
        msg_type: "kernel_info_reply".to_owned(),
        content,
    }
}

/// Returns the reply to a cell: evcxr's with our number, or an error where the cell failed.
fn execute_reply(content: &Value, number: usize, error: Option<ErrorOutput>) -> ExecuteReply {
    let content = numbered(content.clone(), number);
    let mut reply: ExecuteReply = serde_json::from_value(content).unwrap_or_default();
    if let Some(error) = error {
        reply.status = ReplyStatus::Error;
        reply.error = Some(Box::new(ReplyError {
            ename: error.ename,
            evalue: error.evalue,
            traceback: error.traceback,
        }));
    }
    reply
}
