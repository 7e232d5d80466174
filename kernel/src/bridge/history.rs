//! What has been run in this session, which consoles page through and search.

use std::collections::{HashSet, VecDeque};

use anyhow::bail;
use jupyter_protocol::{HistoryEntry, HistoryReply};
use serde::Deserialize;
use serde_json::Value;
use wildmatch::WildMatch;

/// The most bytes that are kept; the oldest cells go first.
const MOST: usize = 4 << 20;

/// What this session is called; those before it are not kept.
const SESSION: i64 = 0;

/// The cells of this session, with their results.
#[derive(Default)]
pub(super) struct History {
    cells: VecDeque<Ran>,
    bytes: usize,
}

struct Ran {
    number: usize,
    code: String,
    result: String,
}

#[derive(Deserialize)]
struct Request {
    hist_access_type: String,
    #[serde(default)]
    output: bool,
    session: Option<i64>,
    start: Option<i64>,
    stop: Option<i64>,
    n: Option<usize>,
    pattern: Option<String>,
    #[serde(default)]
    unique: bool,
}

impl History {
    /// Takes down a cell that is to run.
    pub(super) fn push(&mut self, number: usize, code: &str) {
        self.bytes += code.len();
        self.cells.push_back(Ran {
            number,
            code: code.to_owned(),
            result: String::new(),
        });
        self.forget();
    }

    /// Takes down what a cell has resulted in.
    pub(super) fn result(&mut self, number: usize, text: &str) {
        if let Some(ran) = self.cells.back_mut()
            && ran.number == number
        {
            self.bytes = self.bytes - ran.result.len() + text.len();
            text.clone_into(&mut ran.result);
            self.forget();
        }
    }

    fn forget(&mut self) {
        while self.bytes > MOST
            && let Some(ran) = self.cells.pop_front()
        {
            self.bytes -= ran.code.len() + ran.result.len();
        }
    }

    /// Answers a request for what has been run.
    pub(super) fn answer(&self, request: &Value) -> anyhow::Result<HistoryReply> {
        let request = Request::deserialize(request)?;
        let found = match request.hist_access_type.as_str() {
            "range" => self.range(&request),
            "tail" => last(self.cells.iter().collect(), request.n),
            "search" => self.search(&request),
            other => bail!("hist_access_type {other}: range, tail or search"),
        };
        let entry = |ran: &Ran| {
            if request.output {
                let both = (ran.code.clone(), ran.result.clone());
                HistoryEntry::InputOutput(0, ran.number, both)
            } else {
                HistoryEntry::Input(0, ran.number, ran.code.clone())
            }
        };
        Ok(HistoryReply::new(found.into_iter().map(entry).collect()))
    }

    /// Returns the cells from `start` to before `stop`, which count from the end where negative.
    fn range(&self, request: &Request) -> Vec<&Ran> {
        if request.session.is_some_and(|session| session != SESSION) {
            return Vec::new();
        }
        let end = self.cells.back().map_or(0, |ran| ran.number + 1);
        let place = |index: i64| {
            let back = usize::try_from(index.unsigned_abs()).unwrap_or(usize::MAX);
            if index < 0 {
                end.saturating_sub(back)
            } else {
                back
            }
        };
        let start = place(request.start.unwrap_or(0));
        let stop = request.stop.map_or(end, place);
        let within = |ran: &&Ran| (start..stop).contains(&ran.number);
        self.cells.iter().filter(within).collect()
    }

    fn search(&self, request: &Request) -> Vec<&Ran> {
        let pattern = WildMatch::new(request.pattern.as_deref().unwrap_or("*"));
        let matching = |ran: &&Ran| pattern.matches(&ran.code);
        let mut found: Vec<_> = self.cells.iter().filter(matching).collect();
        if request.unique {
            // The latest of those alike.
            let mut seen = HashSet::new();
            found.reverse();
            found.retain(|ran| seen.insert(&ran.code));
            found.reverse();
        }
        last(found, request.n)
    }
}

fn last(mut cells: Vec<&Ran>, most: Option<usize>) -> Vec<&Ran> {
    let from = most.map_or(0, |most| cells.len().saturating_sub(most));
    cells.split_off(from)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn numbers(history: &History, request: Value) -> Vec<usize> {
        let found = history.answer(&request).unwrap().history;
        let number = |entry| match entry {
            HistoryEntry::Input(_, number, _) | HistoryEntry::InputOutput(_, number, _) => number,
        };
        found.into_iter().map(number).collect()
    }

    fn four_cells() -> History {
        let mut history = History::default();
        for (number, code) in (1..).zip(["let a = 1;", "a", "let b = 2;", "a"]) {
            history.push(number, code);
        }
        history
    }

    #[test]
    fn a_tail_is_the_last_cells_in_their_order() {
        let tail = |n: usize| numbers(&four_cells(), json!({"hist_access_type": "tail", "n": n}));
        assert_eq!(tail(2), [3, 4]);
        assert_eq!(tail(9), [1, 2, 3, 4]);
    }

    #[test]
    fn a_range_ends_before_its_stop_and_counts_from_the_end_where_negative() {
        let range = |session: i64, start: i64, stop: Option<i64>| {
            let request = json!({"hist_access_type": "range", "session": session, "start": start, "stop": stop});
            numbers(&four_cells(), request)
        };
        assert_eq!(range(0, 2, Some(4)), [2, 3]);
        assert_eq!(range(0, -2, None), [3, 4]);
        assert_eq!(range(0, 1, Some(-1)), [1, 2, 3]);
        assert!(range(-1, 1, None).is_empty(), "another session's");
    }

    #[test]
    fn a_search_finds_what_a_pattern_matches_and_once_where_asked_to() {
        let search = |request: Value| {
            let mut request = request;
            request["hist_access_type"] = "search".into();
            numbers(&four_cells(), request)
        };
        assert_eq!(search(json!({"pattern": "let*"})), [1, 3]);
        assert_eq!(search(json!({"pattern": "?"})), [2, 4]);
        assert_eq!(search(json!({"pattern": "?", "unique": true})), [4]);
        assert_eq!(search(json!({"pattern": "*", "n": 1})), [4]);
    }

    #[test]
    fn a_result_comes_with_its_cell_where_asked_for() {
        let mut history = four_cells();
        history.result(4, "1");
        let request = json!({"hist_access_type": "tail", "n": 1, "output": true});
        let found = history.answer(&request).unwrap().history;
        let [HistoryEntry::InputOutput(0, 4, both)] = found.as_slice() else {
            panic!("{found:?}");
        };
        assert_eq!(both, &("a".to_owned(), "1".to_owned()));
    }

    #[test]
    fn the_oldest_cells_are_forgotten_where_much_has_been_run() {
        let mut history = History::default();
        let long = "x".repeat(MOST / 4);
        for number in 1..=9 {
            history.push(number, &long);
        }
        history.result(9, &long);
        let all = json!({"hist_access_type": "search"});
        assert_eq!(numbers(&history, all), [7, 8, 9]);
        assert_eq!(history.bytes, 4 * long.len());
    }

    #[test]
    fn a_request_of_another_kind_is_refused_with_what_there_is() {
        let request = json!({"hist_access_type": "head"});
        let error = four_cells().answer(&request).unwrap_err().to_string();
        assert!(error.contains("range, tail or search"), "{error}");
    }
}
