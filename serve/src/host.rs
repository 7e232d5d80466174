//! The names that a server without a token answers to.
//!
//! A page of another host whose name is made to lead to this machine (DNS rebinding) is of the same origin as the server, to
//! a browser; but the browser says that name.

use std::net::IpAddr;

use axum::extract::Request;
use axum::http::uri::Authority;
use axum::http::{StatusCode, Version, header};

use crate::options::Options;
use crate::problem::Problem;

/// The names to answer to.
#[derive(Debug)]
pub(crate) enum Hosts {
    /// The token says who may ask.
    Any,
    /// This machine's own, and these.
    Local(Vec<String>),
}

impl Hosts {
    pub(crate) fn new(options: &Options) -> Self {
        match options.token {
            Some(_) => Self::Any,
            None => Self::Local(options.allowed_host.clone()),
        }
    }

    /// Refuses a request that is for another host.
    pub(crate) fn check(&self, request: &Request) -> Result<(), Problem> {
        let Self::Local(others) = self else {
            return Ok(());
        };
        let said: Vec<_> = request.headers().get_all(header::HOST).iter().collect();
        let authority = match (request.uri().authority(), &said[..]) {
            // Of a request by a whole address, that one counts (RFC 9112, 3.2.2).
            (Some(authority), _) => Some(authority.clone()),
            // Programs of before 1997, and no browser.
            (None, []) if request.version() <= Version::HTTP_10 => return Ok(()),
            (None, [host]) => Authority::try_from(host.as_bytes()).ok(),
            (None, _) => None,
        };
        let Some(authority) = authority else {
            let detail = "expected one header `Host`, with a host's name";
            return Err(Problem::new(StatusCode::BAD_REQUEST, detail));
        };
        let host = authority.host();
        let is = |name: &String| name.eq_ignore_ascii_case(host);
        if is_local(host) || others.iter().any(is) {
            return Ok(());
        }
        let detail = format!(
            "{host}: expected localhost or 127.0.0.1; other names, as behind a proxy, are given by --allowed-host"
        );
        Err(Problem::new(StatusCode::MISDIRECTED_REQUEST, detail))
    }
}

/// Returns whether a name is this machine's own to every browser.
fn is_local(host: &str) -> bool {
    let address = host.trim_start_matches('[').trim_end_matches(']');
    let address = address.parse::<IpAddr>();
    host.eq_ignore_ascii_case("localhost") || address.is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use axum::body::Body;
    use clap::Parser as _;

    use super::*;

    /// Returns what a request for `target` is refused with, by a server with these arguments.
    fn refused(words: &str, version: Version, target: &str, hosts: &[&str]) -> Option<String> {
        let options = Options::parse_from(
            ["serve", "m"]
                .into_iter()
                .chain(words.split_ascii_whitespace()),
        );
        let mut request = Request::builder().version(version).uri(target);
        for host in hosts {
            request = request.header(header::HOST, *host);
        }
        let checked = Hosts::new(&options).check(&request.body(Body::empty()).unwrap());
        checked
            .err()
            .map(|problem| serde_json::to_string(&problem).unwrap())
    }

    #[test]
    fn a_server_without_a_token_answers_to_this_machines_names_and_those_given() {
        for (host, status) in [
            ("localhost:8000", None),
            ("LocalHost", None),
            ("127.0.0.1:8000", None),
            ("127.8.9.1", None),
            ("[::1]:8000", None),
            ("pets.example", None),
            ("PETS.example:443", None),
            ("evil.example", Some("421")),
            ("localhost.evil.example:8000", Some("421")),
            ("127.0.0.1.evil.example", Some("421")),
            ("192.168.1.2:8000", Some("421")),
            ("[::2]", Some("421")),
            ("", Some("400")),
            ("a b", Some("400")),
        ] {
            let words = "--allowed-host pets.example --allowed-host other.example";
            let found = refused(words, Version::HTTP_11, "/", &[host]);
            match status {
                None => assert_eq!(found, None, "{host}"),
                Some(status) => assert!(found.unwrap().contains(status), "{host}"),
            }
        }
        let evil = ["evil.example"];
        assert_eq!(
            refused("--token 0123456789abcdef", Version::HTTP_11, "/", &evil),
            None
        );
    }

    #[test]
    fn a_whole_address_counts_before_the_header_which_only_old_programs_leave_out() {
        let new = Version::HTTP_11;
        let misdirected = refused("", new, "http://evil.example/", &["localhost"]);
        assert!(misdirected.unwrap().contains("421"));
        assert_eq!(
            refused("", new, "http://localhost:8000/", &["evil.example"]),
            None
        );
        assert!(refused("", new, "/", &[]).unwrap().contains("400"));
        assert_eq!(refused("", Version::HTTP_10, "/", &[]), None);
        let two = refused("", new, "/", &["localhost", "evil.example"]);
        assert!(two.unwrap().contains("400"));
    }
}
