//! The ten sockets: five that Jupyter's clients connect to, five to evcxr behind them.

use std::net::Ipv4Addr;
use std::path::Path;

use anyhow::{Context as _, anyhow};
use jupyter_protocol::{ConnectionInfo, Header, JupyterMessage, JupyterMessageContent};
use jupyter_zmq_client as client;
use jupyter_zmq_client::RawMessage;
use serde_json::Value;
use zeromq::ZmqMessage;

use super::LAST_WORDS;

/// What Jupyter's clients talk to.
pub(super) struct Front {
    pub(super) shell: client::KernelShellConnection,
    pub(super) control: client::KernelControlConnection,
    pub(super) stdin: client::KernelStdinConnection,
    pub(super) iopub: client::KernelIoPubXPubConnection,
    pub(super) heartbeat: client::KernelHeartbeatConnection,
}

/// What evcxr listens on.
pub(super) struct Back {
    pub(super) shell: client::ClientShellConnection,
    pub(super) control: client::ClientControlConnection,
    pub(super) stdin: client::ClientStdinConnection,
    pub(super) iopub: client::ClientIoPubConnection,
}

/// Reads the connection file that Jupyter wrote.
pub(super) fn read_connection(file: &Path) -> anyhow::Result<ConnectionInfo> {
    let text =
        std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
    serde_json::from_str(&text).with_context(|| format!("{}: not a connection", file.display()))
}

/// Returns a connection for evcxr: other ports of this machine, and the same key, so that a
/// message that is passed on keeps its signature.
///
/// The ports are free now, not yet taken. Where all of 127.0.0.0/8 is this machine each kernel has
/// an address of its own there, by its process id, so that another one cannot take them meanwhile.
pub(super) async fn inner_connection(outer: &ConnectionInfo) -> anyhow::Result<ConnectionInfo> {
    let ip = if cfg!(target_os = "linux") {
        Ipv4Addr::from_bits(Ipv4Addr::new(127, 0, 0, 0).to_bits() | std::process::id())
    } else {
        Ipv4Addr::LOCALHOST
    };
    let ports = client::peek_ports(ip.into(), 5).await?;
    let &[shell_port, iopub_port, stdin_port, control_port, hb_port] = ports.as_slice() else {
        return Err(anyhow!(
            "five free ports were asked for, not {}",
            ports.len()
        ));
    };
    Ok(ConnectionInfo {
        ip: ip.to_string(),
        shell_port,
        iopub_port,
        stdin_port,
        control_port,
        hb_port,
        ..outer.clone()
    })
}

impl Front {
    pub(super) async fn bind(connection: &ConnectionInfo, session: &str) -> anyhow::Result<Self> {
        Ok(Self {
            shell: client::create_kernel_shell_connection(connection, session).await?,
            control: client::create_kernel_control_connection(connection, session).await?,
            stdin: client::create_kernel_stdin_connection(connection, session).await?,
            iopub: client::create_kernel_iopub_xpub_connection(connection, session).await?,
            heartbeat: client::create_kernel_heartbeat_connection(connection).await?,
        })
    }
}

impl Back {
    /// Connects as soon as evcxr listens.
    pub(super) async fn connect(
        connection: &ConnectionInfo,
        session: &str,
    ) -> anyhow::Result<Self> {
        // Requests for input go to the socket of the same identity as the one that the cell came by.
        let identity = client::peer_identity_for_session(session)?;
        Ok(Self {
            iopub: client::create_client_iopub_connection(connection, "", session).await?,
            shell: client::create_client_shell_connection_with_identity(
                connection,
                session,
                identity.clone(),
            )
            .await?,
            control: client::create_client_control_connection(connection, session).await?,
            stdin: client::create_client_stdin_connection_with_identity(
                connection, session, identity,
            )
            .await?,
        })
    }
}

/// Returns what has been received. That a client has gone in the middle of it ends nothing.
pub(super) async fn received(message: zeromq::ZmqResult<ZmqMessage>) -> Option<ZmqMessage> {
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

/// A message on its way, which is passed on as it came, and as much of it as is looked at.
pub(super) struct Passing {
    pub(super) message: ZmqMessage,
    pub(super) header: Header,
    pub(super) parent: Option<Header>,
    pub(super) content: Value,
    raw: RawMessage,
}

impl Passing {
    /// Verifies a message's signature and reads it.
    pub(super) fn read<S>(
        message: ZmqMessage,
        connection: &client::Connection<S>,
    ) -> anyhow::Result<Self> {
        let raw = RawMessage::from_multipart(message.clone(), &connection.mac)?;
        let [header, parent, _, content, ..] = raw.jparts.as_slice() else {
            return Err(anyhow!("a message of {} parts", raw.jparts.len()));
        };
        Ok(Self {
            message,
            header: serde_json::from_slice(header)?,
            // `{}` where there is none.
            parent: serde_json::from_slice(parent).ok(),
            content: serde_json::from_slice(content)?,
            raw,
        })
    }

    pub(super) fn kind(&self) -> &str {
        &self.header.msg_type
    }

    /// Returns a message in answer to this one.
    pub(super) fn answer(&self, content: impl Into<JupyterMessageContent>) -> JupyterMessage {
        let mut answer = child_of(&self.header, content);
        answer.zmq_identities.clone_from(&self.raw.zmq_identities);
        answer
    }

    /// Returns this message with another content.
    pub(super) fn with_content(&self, content: impl Into<JupyterMessageContent>) -> JupyterMessage {
        let mut message = JupyterMessage::new(content, None);
        message.zmq_identities.clone_from(&self.raw.zmq_identities);
        message.header.clone_from(&self.header);
        message.parent_header.clone_from(&self.parent);
        message
    }
}

/// Returns a message that belongs to the one with this header.
pub(super) fn child_of(
    parent: &Header,
    content: impl Into<JupyterMessageContent>,
) -> JupyterMessage {
    let mut message = JupyterMessage::new(content, None);
    message.parent_header = Some(parent.clone());
    message
}

/// Sends a message on as it came. That a client has gone is its own affair.
pub(super) async fn pass<S: zeromq::SocketSend>(
    message: ZmqMessage,
    to: &mut client::Connection<S>,
    what: &str,
) {
    if let Err(error) = to.socket.send(message).await {
        eprintln!("{what}: {error}");
    }
}

/// Sends a message of the bridge's own.
pub(super) async fn send<S: zeromq::SocketSend>(
    message: JupyterMessage,
    to: &mut client::Connection<S>,
    what: &str,
) {
    if let Err(error) = to.send(message).await {
        eprintln!("{what}: {error}");
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn a_kernel_that_finds_the_same_ports_free_takes_them_from_none() {
        let outer = serde_json::from_value(serde_json::json!({
            "ip": "127.0.0.1", "transport": "tcp", "signature_scheme": "hmac-sha256", "key": "",
            "shell_port": 1, "iopub_port": 2, "stdin_port": 3, "control_port": 4, "hb_port": 5,
        }));
        let inner = inner_connection(&outer.unwrap()).await.unwrap();
        let _another = TcpListener::bind(("127.0.0.1", inner.shell_port)).unwrap();
        TcpListener::bind((inner.ip.as_str(), inner.shell_port)).unwrap();
    }
}
