//! What is shown of a cell: what it wrote, its displays, how far its build is.

use std::time::Duration;

use jupyter_protocol::{
    ClearOutput, Header, JupyterMessageContent, Stdio as Stream, StreamContent,
};
use serde_json::{Map, Value, json};
use tokio::time::Instant;

use super::Bridge;
use super::channels::{child_of, send};
use super::text::{Piece, pieces};

/// How long text is held back, so that lines written one after the other travel together.
const GATHERING: Duration = Duration::from_millis(10);

impl Bridge {
    /// Takes what a cell wrote.
    pub(super) async fn write(&mut self, parent: &Header, content: &Value) {
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
    pub(super) async fn flush(&mut self) {
        if let Some((parent, stderr, text, _)) = self.text.take() {
            let name = if stderr {
                Stream::Stderr
            } else {
                Stream::Stdout
            };
            self.publish(&parent, StreamContent { name, text }).await;
        }
    }

    pub(super) async fn publish(
        &mut self,
        parent: &Header,
        content: impl Into<JupyterMessageContent>,
    ) {
        send(child_of(parent, content), &mut self.front.iopub, "output").await;
    }

    pub(super) async fn display(
        &mut self,
        parent: Header,
        kind: &str,
        id: &str,
        data: Map<String, Value>,
    ) {
        let content = json!({"data": data, "metadata": {}, "transient": {"display_id": id}});
        match JupyterMessageContent::from_type_and_content(kind, content) {
            Ok(content) => self.publish(&parent, content).await,
            Err(error) => eprintln!("a display was not understood: {error}"),
        }
    }

    /// Shows, or shows anew, what is being compiled.
    pub(super) async fn show_build(&mut self) {
        let Some(header) = self.cell.as_ref().map(|cell| cell.request.header.clone()) else {
            return;
        };
        if let Some((kind, id, text)) = self.build.news() {
            let data = Map::from_iter([("text/plain".to_owned(), Value::from(text))]);
            self.display(header, kind, &id, data).await;
        }
    }

    /// Takes away what was shown about a build: the cell's code runs now, or cannot.
    pub(super) async fn hide_build(&mut self) {
        if self.build.end()
            && let Some(header) = self.cell.as_ref().map(|cell| cell.request.header.clone())
        {
            self.publish(&header, ClearOutput { wait: false }).await;
        }
    }
}
