//! Between Jupyter and evcxr: the same protocol on both sides, most of it passed on as it comes.
//!
//! What it adds is told in `events` (what the code in a cell can say), `queue` (which cell evcxr gets
//! next), `cell` (what becomes of a cell), `output` (what is shown of it), `build` (how far the
//! dependencies are that compile), `hidden` (cells of the bridge's own), `warm_up` (what is done before
//! the first cell), `variables` (the panel of variables) and `requests` (what is answered without
//! evcxr).

mod build;
mod cell;
mod channels;
mod compiler;
mod complete;
mod evcxr;
mod events;
mod guard;
mod hidden;
mod history;
mod info;
mod output;
mod processes;
mod queue;
mod requests;
mod text;
mod usage;
mod variables;
mod warm_up;

use std::collections::{BTreeMap, VecDeque};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Duration;

use jupyter_protocol::{
    ConnectionInfo, ErrorOutput, Header, JupyterMessage, JupyterMessageContent, Status,
};
use jupyter_zmq_client::{SubscriptionEvent, parse_subscription_message};
use serde_json::{Map, Value};
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{Instant, sleep_until};
use zeromq::{SocketRecv as _, SocketSend as _, ZmqMessage};

use build::Build;
use cell::Cell;
use channels::{Front, Passing, pass, received, send};
use evcxr::{Evcxr, Heard};
use events::Event;
use hidden::Hidden;
use history::History;
use usage::Usage;
use variables::Variables;

pub use cell::PLACE_ENDS;
pub use events::{SOCKET, VERSION};
pub use text::MARK;

/// How long a cell's last words may take: evcxr says that a cell is done, and passes on what it
/// wrote, by different ways.
const LAST_WORDS: Duration = Duration::from_millis(5);
/// A failure's are on stderr, which takes longer.
const LAST_WORDS_OF_FAILURE: Duration = Duration::from_millis(30);

/// How long the reply to a cell may take after evcxr has said that it is idle. Without one it has
/// panicked, and answers nothing any more.
const REPLY: Duration = Duration::from_secs(1);

/// How often a cell whose build was ended is looked at: evcxr tries a failed one in other ways.
const NEXT_BUILD: Duration = Duration::from_millis(100);

/// How evcxr is to be started.
#[derive(Debug)]
pub struct Launch {
    /// The program, which takes a connection file as its last argument.
    pub evcxr: Command,
    /// Cargo, in whose place evcxr runs this program.
    pub cargo: PathBuf,
    /// Where it builds.
    pub build_folder: PathBuf,
    /// The version of the compiler.
    pub rustc: String,
}

/// Starts evcxr and serves the connection that Jupyter's file describes until Jupyter ends it or
/// evcxr is gone. Nothing that evcxr has started is left then. Where evcxr cannot be started, every
/// cell is answered with the reason.
///
/// # Errors
///
/// The file cannot be read, a port is taken.
pub fn run(connection_file: &Path, launch: anyhow::Result<Launch>) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(serve(connection_file, launch))
}

async fn serve(connection_file: &Path, launch: anyhow::Result<Launch>) -> anyhow::Result<ExitCode> {
    let parent = std::os::unix::process::parent_id();
    let connection = channels::read_connection(connection_file)?;
    let session = JupyterMessage::new(Status::idle(), None).header.session;
    let front = Front::bind(&connection, &session).await?;
    let mut bridge = Bridge {
        front,
        evcxr: Err(ErrorOutput::default()),
        rustc: String::new(),
        build: Build::in_folder(PathBuf::new()),
        displays: BTreeMap::new(),
        cell: None,
        last_cell: None,
        waiting: VecDeque::new(),
        count: 0,
        history: History::default(),
        hidden: Hidden::default(),
        variables: Variables::default(),
        unanswered: None,
        text: None,
        warned: None,
        usage: Usage::new(),
        is_heard: false,
        held_back: None,
    };
    bridge.launch(launch, &connection, &session).await;

    let mut ended = signal(SignalKind::terminate())?;
    let mut interrupted = signal(SignalKind::interrupt())?;
    let mut look_at_parent = tokio::time::interval(Duration::from_secs(1));
    let code = loop {
        let due = bridge.due();
        let Bridge {
            front,
            evcxr,
            held_back,
            ..
        } = &mut bridge;
        tokio::select! {
            // First what has to work however much a cell writes.
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
            message = front.iopub.socket.recv() => if let Some(message) = received(message).await
                && let Some(SubscriptionEvent::Subscribe(topic)) = parse_subscription_message(&message)
            {
                bridge.welcome(topic).await;
            },
            message = front.shell.socket.recv(), if held_back.is_none() => {
                if let Some(message) = received(message).await {
                    bridge.request(message).await;
                }
            }
            heard = next(evcxr) => if bridge.hear(heard).await.is_break() {
                break ExitCode::FAILURE;
            },
            message = front.stdin.socket.recv() => if let Some(message) = received(message).await
                && let Ok(evcxr) = evcxr
            {
                pass(message, &mut evcxr.back.stdin, "input").await;
            },
            () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {
                bridge.on_time().await;
            }
        }
    };
    if let Ok(evcxr) = bridge.evcxr {
        evcxr.end().await;
    }
    Ok(code)
}

/// Returns what is heard next from evcxr, if there is one.
async fn next(evcxr: &mut Result<Evcxr, ErrorOutput>) -> Heard {
    match evcxr {
        Ok(evcxr) => evcxr.next().await,
        Err(_) => std::future::pending().await,
    }
}

struct Bridge {
    front: Front,
    /// evcxr, or why there is none: the answer to every cell.
    evcxr: Result<Evcxr, ErrorOutput>,
    /// The version of the compiler.
    rustc: String,
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
    history: History,
    hidden: Hidden,
    variables: Variables,
    /// Until when evcxr has to reply to a cell that it says is done.
    unanswered: Option<Instant>,
    /// Text held back, whether it is of stderr, and until when.
    text: Option<(Header, bool, String, Instant)>,
    /// When Stop was last answered with a warning.
    warned: Option<Instant>,
    usage: Usage,
    /// Whether a client can hear what is published, or has had the time to.
    is_heard: bool,
    /// The first request until then, and how long it is held back.
    held_back: Option<(ZmqMessage, Instant)>,
}

impl Bridge {
    /// Returns when something is to be done that no message brings about.
    fn due(&self) -> Option<Instant> {
        let text = self.text.as_ref().map(|(.., until)| *until);
        let cell = self.cell.as_ref();
        let end = cell.and_then(|cell| cell.ends);
        let build = cell.and_then(|cell| cell.ends_build);
        let begin = self.held_back.as_ref().map(|(_, until)| *until);
        [text, end, build, begin, self.unanswered]
            .into_iter()
            .flatten()
            .min()
    }

    async fn on_time(&mut self) {
        let now = Instant::now();
        let is_due = |time: Option<Instant>| time.is_some_and(|time| time <= now);
        if let (Some(cell), Ok(evcxr)) = (&mut self.cell, &self.evcxr)
            && is_due(cell.ends_build)
        {
            evcxr.stop_build();
            cell.ends_build = Some(now + NEXT_BUILD);
        }
        if is_due(self.held_back.as_ref().map(|(_, until)| *until)) {
            self.begin().await;
        }
        if is_due(self.unanswered) {
            let panic = self.evcxr.as_ref().ok().and_then(Evcxr::panic);
            self.lose_evcxr(crash(panic)).await;
        } else if is_due(self.cell.as_ref().and_then(|cell| cell.ends)) {
            self.end_cell().await;
            // Before a cell that waits, too, which may run for an hour; this takes milliseconds.
            self.hidden.ask_first(self.variables.list());
            self.next_hidden().await;
        } else {
            self.flush().await;
        }
    }

    /// Starts evcxr, or takes down why it cannot be started.
    async fn launch(
        &mut self,
        launch: anyhow::Result<Launch>,
        connection: &ConnectionInfo,
        session: &str,
    ) {
        let started = match launch {
            Ok(launch) => {
                self.rustc = launch.rustc;
                self.build = Build::in_folder(launch.build_folder);
                Evcxr::start(launch.evcxr, &launch.cargo, connection, session).await
            }
            Err(error) => Err(error),
        };
        self.evcxr = started.map_err(|error| no_start(&format!("{error:#}")));
        if warm_up::is_wanted() {
            self.warm_up(warm_up::is_started()).await;
        }
    }

    /// Takes what is heard from evcxr and the cells; breaks where evcxr has ended.
    async fn hear(&mut self, heard: Heard) -> ControlFlow<()> {
        match heard {
            Heard::Event(event) => self.take(event).await,
            Heard::Output(output) => self.output(output).await,
            Heard::Reply(reply) => self.reply(reply).await,
            Heard::ControlReply(message) => {
                pass(message, &mut self.front.control, "control").await;
            }
            Heard::Input(message) => pass(message, &mut self.front.stdin, "input").await,
            Heard::Ended(status) => {
                self.flush().await;
                match &mut self.evcxr {
                    Ok(evcxr) if !evcxr.works => {
                        let error = no_start(&evcxr.last_words(&status).await);
                        self.lose_evcxr(error).await;
                    }
                    _ => {
                        eprintln!("evcxr ended: {status}");
                        return ControlFlow::Break(());
                    }
                }
            }
        }
        let cell = self.cell.as_ref();
        if cell.is_some_and(Cell::lacks_reply) || self.hidden.lacks_reply() {
            self.unanswered
                .get_or_insert_with(|| Instant::now() + REPLY);
        } else {
            self.unanswered = None;
        }
        ControlFlow::Continue(())
    }

    /// Goes on without evcxr. It is not started again: what follows would miss the cells before.
    async fn lose_evcxr(&mut self, error: ErrorOutput) {
        self.unanswered = None;
        if let Ok(evcxr) = std::mem::replace(&mut self.evcxr, Err(error.clone())) {
            if !evcxr.works {
                self.announce().await;
            }
            evcxr.end().await;
        }
        self.hidden = Hidden::default();
        self.variables.forget();
        self.fail(error).await;
        self.next_cell().await;
        self.answer_debug_requests().await;
    }

    /// An answer on the shell channel.
    async fn reply(&mut self, reply: Passing) {
        if self.hidden.takes(&reply) {
            if reply.kind() == "kernel_info_reply" && self.last_cell.is_none() {
                self.warm_up(warm_up::request()).await;
            }
            return self.end_hidden().await;
        }
        if reply.kind() == "execute_reply"
            && let Some(cell) = self.cell_of(reply.parent.as_ref())
        {
            cell.reply = Some(reply);
            return cell.ends_if_told();
        }
        pass(reply.message, &mut self.front.shell, "reply").await;
    }

    async fn warm_up(&mut self, request: JupyterMessage) {
        if let Ok(evcxr) = &mut self.evcxr {
            self.hidden.warm_up.push(request.header.msg_id.clone());
            send(request, &mut evcxr.back.shell, "warm-up").await;
        }
    }

    /// Something that evcxr publishes.
    async fn output(&mut self, output: Passing) {
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
                    cell.idle = true;
                    return cell.ends_if_told();
                }
                "error" => {
                    cell.error = serde_json::from_value(output.content.clone()).ok();
                    let is_stopped = cell.ends_build.is_some();
                    self.hide_build().await;
                    if is_stopped {
                        // evcxr shows all that the compiler had said.
                        return;
                    }
                }
                "execute_result" => {
                    let (number, text) = (cell.number, &output.content["data"]["text/plain"]);
                    self.history
                        .result(number, text.as_str().unwrap_or_default());
                    self.hide_build().await;
                }
                "display_data" => self.hide_build().await,
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
            Event::Build { text } => {
                if self.cell.is_some() {
                    self.build.tell(text);
                    self.show_build().await;
                }
            }
            Event::Listen => {}
        }
    }
}

/// Where messages hold the number of a cell.
const COUNT: &str = "execution_count";

/// Returns a message's content with the number that the bridge gives the cell.
fn numbered(mut content: Value, number: usize) -> Value {
    content[COUNT] = number.into();
    content
}

/// Returns the answer to every cell of a kernel that could not start.
fn no_start(reason: &str) -> ErrorOutput {
    let evalue = format!("this kernel could not start: {reason}");
    let advice =
        "Mend that, then restart the kernel. `cargo xtask setup` installs what is missing.";
    ErrorOutput {
        ename: "NoKernel".to_owned(),
        traceback: vec![evalue.clone(), advice.to_owned()],
        evalue,
    }
}

/// Returns the answer to every cell after a panic of evcxr's, and what it said then.
fn crash(panic: Option<String>) -> ErrorOutput {
    let evalue = "evcxr, which runs the cells, has crashed: all variables are lost".to_owned();
    let advice = "Restart the kernel and run the cells again. If it crashes at the same cell, write \
                  that one differently: it met a bug of evcxr's.";
    ErrorOutput {
        ename: "EvcxrCrash".to_owned(),
        traceback: [Some(evalue.clone()), panic, Some(advice.to_owned())]
            .into_iter()
            .flatten()
            .collect(),
        evalue,
    }
}
