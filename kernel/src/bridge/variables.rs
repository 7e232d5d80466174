//! JupyterLab's variables panel: of the debug protocol, `inspectVariables`, `richInspectVariables`
//! and what the panel sends around them. Every other request is refused: nothing here debugs.
//!
//! evcxr knows names and types (`:vars`, which compiles nothing, asked after every cell). What a
//! variable holds it tells of itself, through `support::notebook::describe` in a hidden cell, which
//! compiles: only when a person asks for it, and never before a cell of theirs. While a cell runs,
//! answers are of what was known before it.

use std::collections::BTreeMap;

use jupyter_protocol::{DebugReply, UnknownMessage};
use serde_json::{Value, json};

use super::Bridge;
use super::channels::Passing;
use super::hidden::{Answer, Purpose, Question};
use super::requests::Channel;

/// The variables, as far as they are known.
#[derive(Default)]
pub(super) struct Variables {
    known: BTreeMap<String, Variable>,
    /// Whether they are being listed.
    listing: bool,
    /// Whether a cell has spoken of `support`.
    support: bool,
    /// Whether a person has switched the debugger on.
    started: bool,
    /// Requests that wait for a hidden cell.
    waiting: Vec<Passing>,
}

struct Variable {
    /// Its type, without the paths of modules.
    of_type: String,
    /// What it holds, by MIME type.
    content: Option<Value>,
}

/// When a hidden cell can run.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Turn {
    Now,
    /// After the hidden one that runs.
    Next,
    /// After a person's cell, which is not waited for, or never.
    Late,
}

/// What is to be done about a request.
#[derive(Debug)]
pub(super) enum Response {
    Reply(Value),
    /// Ask this, then look at the request anew.
    Ask(Question),
    /// Look at the request anew when a hidden cell has ended.
    Wait,
}

impl Variables {
    /// Returns the hidden cell that lists the variables.
    pub(super) fn list(&mut self) -> Question {
        self.listing = true;
        Question {
            purpose: Purpose::List,
            code: ":vars".to_owned(),
        }
    }

    /// Takes notice of a cell that evcxr has taken.
    pub(super) fn note_cell(&mut self, code: &str) {
        self.support |= code.contains("support");
    }

    /// Takes notice that all are lost.
    pub(super) fn forget(&mut self) {
        self.listing = false;
        self.known.clear();
    }

    /// Takes the answer to `:vars`.
    pub(super) fn learn(&mut self, answer: &Answer) {
        self.listing = false;
        let Some(table) = answer.data["text/html"].as_str() else {
            return;
        };
        self.known = rows(table)
            .map(|(name, of_type)| {
                let of_type = short(&of_type);
                let content = None;
                (name, Variable { of_type, content })
            })
            .collect();
    }

    /// Takes what a variable tells of itself, or that it does not.
    pub(super) fn learn_content(&mut self, name: &str, answer: Answer) {
        if let Some(variable) = self.known.get_mut(name) {
            let told = answer.ok && answer.data.is_object();
            variable.content = Some(if told {
                answer.data
            } else {
                variable.type_only("")
            });
        }
    }

    /// Returns what is to be done about a `debug_request`.
    pub(super) fn respond(&mut self, request: &Value, turn: Turn) -> Response {
        let command = request["command"].as_str().unwrap_or_default();
        let body = match command {
            "debugInfo" => self.info(),
            "initialize" => {
                self.started = true;
                json!({"exceptionBreakpointFilters": []})
            }
            "disconnect" => {
                self.started = false;
                json!({})
            }
            "attach" | "configurationDone" | "setExceptionBreakpoints" => json!({}),
            "modules" => json!({"modules": [], "totalModules": 0}),
            "inspectVariables" if self.listing && turn != Turn::Late => return Response::Wait,
            "inspectVariables" => json!({"variables": self.rows()}),
            "richInspectVariables" if self.listing && turn != Turn::Late => return Response::Wait,
            "richInspectVariables" => {
                let name = request["arguments"]["variableName"].as_str();
                let name = name.unwrap_or_default();
                let Some(variable) = self.known.get(name) else {
                    let reason = format!("there is no variable `{name}`");
                    return Response::Reply(refused(request, &reason));
                };
                let data = match (&variable.content, turn) {
                    (Some(content), _) => content.clone(),
                    (None, _) if !self.support => {
                        variable.type_only("without `support`, no more is known of it")
                    }
                    (None, Turn::Late) => {
                        variable.type_only("what it holds is shown when the running cell has ended")
                    }
                    (None, Turn::Next) => return Response::Wait,
                    (None, Turn::Now) => return Response::Ask(describe(name)),
                };
                json!({"data": data, "metadata": {}})
            }
            _ => {
                let reason = format!(
                    "`{command}` is not supported: this kernel shows variables, it does not debug"
                );
                return Response::Reply(refused(request, &reason));
            }
        };
        Response::Reply(reply(request, true, body))
    }

    /// Returns what the panel asks for first.
    fn info(&self) -> Value {
        json!({
            "isStarted": self.started,
            "richRendering": true,
            "copyToGlobals": false,
            "breakpoints": [],
            "stoppedThreads": [],
            "exceptionPaths": [],
            // For files that cells would be written to: JupyterLab insists.
            "hashMethod": "Murmur2",
            "hashSeed": 0,
            "tmpFilePrefix": "",
            "tmpFileSuffix": ".rs",
        })
    }

    fn rows(&self) -> Vec<Value> {
        let row = |(name, variable): (&String, &Variable)| {
            let text = variable.content.as_ref().map(|data| &data["text/plain"]);
            let text = text.and_then(Value::as_str).unwrap_or_default();
            json!({
                "name": name,
                "evaluateName": name,
                "type": variable.of_type,
                "value": text.lines().next().unwrap_or_default(),
                "variablesReference": 0,
            })
        };
        self.known.iter().map(row).collect()
    }
}

impl Variable {
    /// Returns what is shown where the type is all that is known, and why.
    fn type_only(&self, why: &str) -> Value {
        let text = match why {
            "" => self.of_type.clone(),
            why => format!("{}: {why}", self.of_type),
        };
        json!({"text/plain": text})
    }
}

impl Bridge {
    /// Looks anew at the requests of the debug protocol that wait.
    pub(super) async fn answer_debug_requests(&mut self) {
        for request in std::mem::take(&mut self.variables.waiting) {
            self.answer_debug_request(request).await;
        }
    }

    pub(super) async fn answer_debug_request(&mut self, request: Passing) {
        let turn = if self.evcxr.is_err() || self.cell.is_some() || !self.waiting.is_empty() {
            Turn::Late
        } else if self.hidden.is_running() {
            Turn::Next
        } else {
            Turn::Now
        };
        match self.variables.respond(&request.content, turn) {
            Response::Reply(content) => {
                if request.content["command"] == "attach" {
                    // Has JupyterLab open the panel.
                    self.publish(&request.header, event("initialized")).await;
                }
                self.finish(&request, DebugReply { content }, Channel::Control)
                    .await;
            }
            Response::Ask(question) => {
                self.variables.waiting.push(request);
                self.ask(question).await;
            }
            Response::Wait => self.variables.waiting.push(request),
        }
    }
}

/// Returns the hidden cell in which a variable tells what it holds. It borrows the variable; the
/// block keeps what it uses from later cells; the `;` tells evcxr not to look for a value to show.
fn describe(name: &str) -> Question {
    Question {
        purpose: Purpose::Describe(name.to_owned()),
        code: format!(
            "{{ use ::support::notebook::describe::*; (&&&Variable(&{name})).description().show(); }};"
        ),
    }
}

fn reply(request: &Value, success: bool, body: Value) -> Value {
    json!({
        "type": "response",
        "seq": request["seq"],
        "request_seq": request["seq"],
        "command": request["command"],
        "success": success,
        "body": body,
    })
}

/// Refuses a request. JupyterLab looks into the body of some replies without a look at `success`.
fn refused(request: &Value, reason: &str) -> Value {
    let mut reply = reply(request, false, json!({"sourcePath": "", "breakpoints": []}));
    reply["message"] = reason.into();
    reply
}

/// Returns an event of the debug protocol.
pub(super) fn event(name: &str) -> UnknownMessage {
    UnknownMessage {
        msg_type: "debug_event".to_owned(),
        content: json!({"type": "event", "seq": 0, "event": name, "body": {}}),
    }
}

/// Returns the names and types in the table that `:vars` gives. Its text is ambiguous where a type
/// has several lines.
fn rows(table: &str) -> impl Iterator<Item = (String, String)> {
    let text = |cell: &str| {
        let text = cell.replace("&lt;", "<").replace("&gt;", ">");
        let text = text.replace("&amp;", "&");
        text.split_whitespace().collect::<Vec<_>>().join(" ")
    };
    table.split("<tr><td>").skip(1).filter_map(move |row| {
        let (name, rest) = row.split_once("</td><td>")?;
        Some((text(name), text(rest.split("</td>").next()?)))
    })
}

/// Returns a type without the paths of modules: `Vec<Tensor>` for `Vec<support::tch::Tensor>`.
fn short(type_name: &str) -> String {
    let mut short = String::new();
    let mut rest = type_name;
    while let Some((before, after)) = rest.split_once("::") {
        let kept = before.trim_end_matches(|c: char| c.is_alphanumeric() || c == '_');
        short += kept;
        if kept.len() == before.len() {
            // `<T as Trait>::Output`
            short += "::";
        }
        rest = after;
    }
    short + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(data: Value) -> Answer {
        Answer { ok: true, data }
    }

    /// Variables as evcxr lists them.
    fn variables() -> Variables {
        let table = "<table><tr><th>Variable</th><th>Type</th></tr>\
                     <tr><td>t</td><td>support::tch::Tensor</td><tr>\
                     <tr><td>a</td><td>Vec&lt;u8&gt;</td><tr></table>";
        let mut variables = Variables::default();
        variables.list();
        variables.learn(&answer(json!({"text/html": table})));
        variables.note_cell(":dep support = { path = \"../support\" }");
        variables
    }

    fn asks(command: &str) -> Value {
        json!({"type": "request", "seq": 3, "command": command, "arguments": {"variableName": "t"}})
    }

    fn replied(response: Response) -> Value {
        match response {
            Response::Reply(reply) => reply,
            other => panic!("no reply: {other:?}"),
        }
    }

    #[test]
    fn a_list_has_names_in_order_and_types_without_paths() {
        let reply = replied(variables().respond(&asks("inspectVariables"), Turn::Now));
        let variable = |name, of_type| json!({"name": name, "evaluateName": name, "type": of_type, "value": "", "variablesReference": 0});
        let expected = json!([variable("a", "Vec<u8>"), variable("t", "Tensor")]);
        assert_eq!(reply["body"]["variables"], expected);
        assert_eq!(
            (&reply["request_seq"], &reply["success"]),
            (&json!(3), &json!(true))
        );
    }

    #[test]
    fn types_lose_the_paths_of_modules_and_nothing_else() {
        for (long, expected) in [
            ("i32", "i32"),
            (
                "std::collections::HashMap<alloc::string::String, [support::tch::Tensor; 2]>",
                "HashMap<String, [Tensor; 2]>",
            ),
            (
                "Box<dyn core::ops::Fn(&str) -> a::B>",
                "Box<dyn Fn(&str) -> B>",
            ),
            ("<a::B as c::D>::Output", "<B as D>::Output"),
            ("&'static str", "&'static str"),
        ] {
            assert_eq!(short(long), expected);
        }
    }

    #[test]
    fn a_type_may_have_references_and_several_lines() {
        let table = "<tr><td>f</td><td>fn(\n  &amp;str,\n) -&gt; u8</td><tr></table>";
        let expected = ("f".to_owned(), "fn( &str, ) -> u8".to_owned());
        assert_eq!(rows(table).collect::<Vec<_>>(), [expected]);
    }

    #[test]
    fn what_a_variable_holds_is_asked_for_once_and_anew_after_a_cell() {
        let mut variables = variables();
        let rich = asks("richInspectVariables");
        let Response::Ask(question) = variables.respond(&rich, Turn::Now) else {
            panic!("nothing is asked");
        };
        assert!(question.code.contains("(&&&Variable(&t))"), "{question:?}");
        assert!(matches!(
            variables.respond(&rich, Turn::Next),
            Response::Wait
        ));

        let data = json!({"text/plain": "shape [2]\nmore"});
        variables.learn_content("t", answer(data.clone()));
        let known = replied(variables.respond(&rich, Turn::Now));
        assert_eq!(known["body"], json!({"data": data, "metadata": {}}));
        let list = replied(variables.respond(&asks("inspectVariables"), Turn::Now));
        assert_eq!(list["body"]["variables"][1]["value"], "shape [2]");

        variables.learn(&answer(
            json!({"text/html": "<tr><td>t</td><td>u8</td><tr>"}),
        ));
        assert!(matches!(
            variables.respond(&rich, Turn::Now),
            Response::Ask(_)
        ));
    }

    #[test]
    fn a_running_cell_is_never_waited_for() {
        let mut variables = variables();
        variables.list();
        let list = asks("inspectVariables");
        assert!(matches!(
            variables.respond(&list, Turn::Next),
            Response::Wait
        ));
        let late = replied(variables.respond(&list, Turn::Late));
        assert_eq!(late["body"]["variables"][0]["name"], "a");
        let late = replied(variables.respond(&asks("richInspectVariables"), Turn::Late));
        let text = late["body"]["data"]["text/plain"].as_str().unwrap();
        assert!(
            text.starts_with("Tensor: ") && text.contains("running cell"),
            "{text}"
        );
    }

    #[test]
    fn where_nothing_more_is_known_the_type_is_shown() {
        let mut with_support = variables();
        let rich = asks("richInspectVariables");
        with_support.learn_content("t", Answer::default());
        let reply = replied(with_support.respond(&rich, Turn::Now));
        assert_eq!(reply["body"]["data"]["text/plain"], "Tensor");

        let mut without = Variables {
            support: false,
            ..variables()
        };
        let reply = replied(without.respond(&rich, Turn::Now));
        let text = reply["body"]["data"]["text/plain"].as_str().unwrap();
        assert!(text.starts_with("Tensor: without `support`"), "{text}");
    }

    #[test]
    fn what_is_not_there_or_not_supported_is_refused_in_words() {
        let mut variables = variables();
        let unknown =
            json!({"command": "richInspectVariables", "arguments": {"variableName": "x; evil()"}});
        for (request, reason) in [
            (unknown, "no variable `x; evil()`"),
            (asks("setBreakpoints"), "`setBreakpoints` is not supported"),
            (json!([]), "`` is not supported"),
        ] {
            let reply = replied(variables.respond(&request, Turn::Now));
            let message = reply["message"].as_str().unwrap();
            assert!(
                reply["success"] == false && message.contains(reason),
                "{reply}"
            );
        }
    }

    #[test]
    fn the_debugger_is_on_between_initialize_and_disconnect() {
        let mut variables = variables();
        let mut is_started = |command: &str| {
            replied(variables.respond(&asks(command), Turn::Now));
            replied(variables.respond(&asks("debugInfo"), Turn::Now))["body"]["isStarted"] == true
        };
        assert_eq!(
            ["attach", "initialize", "attach", "disconnect"].map(&mut is_started),
            [false, true, true, false]
        );
    }
}
