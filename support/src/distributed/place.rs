//! Which of how many processes this one is, as torchrun and other launchers say it.

use std::ffi::OsString;

use crate::{Error, Result};

/// A process' place among those that train together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) rank: usize,
    /// How many ranks there are.
    pub(crate) size: usize,
    /// The rank among those on this machine.
    pub(crate) local_rank: usize,
    /// How many ranks are on this machine.
    pub(crate) local_size: usize,
    /// How often the launcher has started the processes again.
    pub(crate) restarts: usize,
    /// Where the store is that all ranks reach.
    pub(super) host: String,
    pub(super) port: u16,
    /// Whether the launcher serves the store, and not rank 0.
    pub(super) launcher_serves: bool,
}

impl Place {
    /// Reads the launcher's variables; `None` where there is one process only.
    ///
    /// # Errors
    /// `Setting` names the first that is missing or cannot be used.
    pub(crate) fn from_lookup(lookup: impl Fn(&str) -> Option<OsString>) -> Result<Option<Self>> {
        let text = |name: &str| {
            let value = lookup(name).filter(|value| !value.is_empty());
            value.map(|value| value.to_string_lossy().into_owned())
        };
        if text("RANK").is_none() && text("WORLD_SIZE").is_none() {
            return Ok(None);
        }
        let needed = |name: &'static str, expected: &str| {
            text(name).ok_or_else(|| {
                let other = if name == "RANK" { "WORLD_SIZE" } else { "RANK" };
                refused(name, "", &format!("{expected}, as {other} is set"))
            })
        };
        let number = |name: &'static str, value: String, expected: &str| {
            let number = value.parse::<usize>();
            number.map_err(|_| refused(name, &value, expected))
        };
        let optional = |name: &'static str, default: usize| match text(name) {
            Some(value) => number(name, value, "a whole number"),
            None => Ok(default),
        };
        let ranks = "a whole number above 0, how many processes there are";
        let size = number("WORLD_SIZE", needed("WORLD_SIZE", ranks)?, ranks)?;
        let below = |what: &str| format!("a whole number below {what}");
        let rank = number(
            "RANK",
            needed("RANK", &below("WORLD_SIZE"))?,
            &below("WORLD_SIZE"),
        )?;
        if size == 0 {
            return Err(refused("WORLD_SIZE", "0", ranks));
        }
        if rank >= size {
            let expected = below(&format!("WORLD_SIZE, {size}"));
            return Err(refused("RANK", &rank.to_string(), &expected));
        }
        if size == 1 {
            return Ok(None);
        }
        let host = needed("MASTER_ADDR", "the name or address of rank 0's machine")?;
        let port = needed("MASTER_PORT", "a port that is free on rank 0's machine")?;
        Ok(Some(Self {
            rank,
            size,
            local_rank: optional("LOCAL_RANK", 0)?,
            local_size: optional("LOCAL_WORLD_SIZE", 1)?.max(1),
            restarts: optional("TORCHELASTIC_RESTART_COUNT", 0)?,
            host,
            port: port
                .parse()
                .ok()
                .filter(|&port| port > 0)
                .ok_or_else(|| refused("MASTER_PORT", &port, "a port, 1 to 65535"))?,
            launcher_serves: text("TORCHELASTIC_USE_AGENT_STORE").as_deref() == Some("True"),
        }))
    }

    /// Returns whether this rank serves the store.
    pub(super) fn serves(&self) -> bool {
        self.rank == 0 && !self.launcher_serves
    }

    /// Returns the error of an operation of this rank.
    pub(super) fn failed(&self, operation: &str, reason: String) -> Error {
        Error::Distributed {
            rank: self.rank,
            ranks: self.size,
            operation: operation.to_owned(),
            reason,
        }
    }

    /// Returns the store's address.
    pub(super) fn store(&self) -> String {
        let server = match self.launcher_serves {
            true => "the launcher",
            false => "rank 0",
        };
        format!("{server}'s store at {}:{}", self.host, self.port)
    }
}

fn refused(name: &'static str, value: &str, expected: &str) -> Error {
    Error::Setting {
        name,
        value: value.to_owned(),
        expected: expected.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(variables: &[(&str, &str)]) -> Result<Option<Place>> {
        Place::from_lookup(|name| {
            let found = variables.iter().find(|(key, _)| *key == name);
            found.map(|(_, value)| value.into())
        })
    }

    const TORCHRUN: [(&str, &str); 8] = [
        ("RANK", "5"),
        ("WORLD_SIZE", "8"),
        ("LOCAL_RANK", "1"),
        ("LOCAL_WORLD_SIZE", "4"),
        ("MASTER_ADDR", "node0"),
        ("MASTER_PORT", "29500"),
        ("TORCHELASTIC_RESTART_COUNT", "2"),
        ("TORCHELASTIC_USE_AGENT_STORE", "True"),
    ];

    #[test]
    fn torchruns_variables_say_which_rank_this_is() {
        let found = place(&TORCHRUN).unwrap().unwrap();
        let expected = Place {
            rank: 5,
            size: 8,
            local_rank: 1,
            local_size: 4,
            restarts: 2,
            host: "node0".into(),
            port: 29500,
            launcher_serves: true,
        };
        assert_eq!(found, expected);
        assert_eq!(found.store(), "the launcher's store at node0:29500");
    }

    #[test]
    fn one_process_needs_no_group() {
        assert_eq!(place(&[]).unwrap(), None);
        // A cluster may set these for every job.
        let cluster = [("MASTER_ADDR", "node0"), ("MASTER_PORT", "29500")];
        assert_eq!(place(&cluster).unwrap(), None);
        assert_eq!(place(&[("RANK", "0"), ("WORLD_SIZE", "1")]).unwrap(), None);
    }

    #[test]
    fn a_variable_that_is_missing_or_makes_no_sense_is_named() {
        for (name, value, expected) in [
            (
                "RANK",
                "",
                "RANK=: expected a whole number below WORLD_SIZE, as WORLD_SIZE is set",
            ),
            (
                "RANK",
                "8",
                "RANK=8: expected a whole number below WORLD_SIZE, 8",
            ),
            (
                "RANK",
                "-1",
                "RANK=-1: expected a whole number below WORLD_SIZE",
            ),
            (
                "WORLD_SIZE",
                "",
                "WORLD_SIZE=: expected a whole number above 0, how many",
            ),
            (
                "WORLD_SIZE",
                "0",
                "WORLD_SIZE=0: expected a whole number above 0",
            ),
            ("LOCAL_RANK", "x", "LOCAL_RANK=x: expected a whole number"),
            (
                "MASTER_ADDR",
                "",
                "MASTER_ADDR=: expected the name or address",
            ),
            ("MASTER_PORT", "", "MASTER_PORT=: expected a port"),
            (
                "MASTER_PORT",
                "70000",
                "MASTER_PORT=70000: expected a port, 1 to 65535",
            ),
        ] {
            let variables = TORCHRUN.map(|(key, old)| (key, if key == name { value } else { old }));
            let error = place(&variables).unwrap_err().to_string();
            assert!(error.starts_with(expected), "{error}");
        }
    }
}
