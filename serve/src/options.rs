//! The command line.

use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser};

/// Opens a page that classifies pictures with a model file, and answers other programs.
///
/// The exit code is 1 if the model cannot be read or the address cannot be used, 2 for other arguments than these.
#[derive(Clone, Debug, Parser)]
#[command(name = "serve")]
pub(crate) struct Options {
    /// A file that a notebook's `model.save` wrote
    pub(crate) model: PathBuf,
    /// The address to listen at; any but this machine's own wants a token and TLS
    #[arg(long, default_value_t = IpAddr::V4(Ipv4Addr::LOCALHOST))]
    pub(crate) host: IpAddr,
    /// The port to listen at; 0 is one that is free
    #[arg(long, default_value_t = 8000)]
    pub(crate) port: u16,
    /// The model's name in answers; else the file's
    #[arg(long)]
    pub(crate) name: Option<String>,
    /// What computes: auto, cpu, cuda or cuda:N
    #[arg(long, env = "TRANSFER_DEVICE", default_value = "auto")]
    pub(crate) device: String,
    /// A folder for pictures that visitors say the class of, to train on; without, the page does not ask
    #[arg(long)]
    pub(crate) collect: Option<PathBuf>,
    /// A folder of pictures that the page offers to try, or a dataset's name (cats_and_dogs_filtered, ...): eight at most,
    /// of 1 MiB at most, from each class in turn
    #[arg(long)]
    pub(crate) examples: Option<PathBuf>,
    /// What programs say in `Authorization: Bearer TOKEN`; better by the environment, as others see a command line
    #[arg(long, env = "SERVE_TOKEN", hide_env_values = true)]
    pub(crate) token: Option<String>,
    /// Another name, as a proxy passes it on, that a server without a token answers to; several times for several
    #[arg(long, value_name = "NAME")]
    pub(crate) allowed_host: Vec<String>,
    /// A file with the certificate and those above it, PEM
    #[arg(long, requires = "tls_key")]
    pub(crate) tls_cert: Option<PathBuf>,
    /// A file with the certificate's private key, PEM
    #[arg(long, requires = "tls_cert")]
    pub(crate) tls_key: Option<PathBuf>,
    /// How much is taken.
    #[command(flatten)]
    pub(crate) bounds: Bounds,
}

/// How much the server takes on before it says so.
#[derive(Args, Clone, Copy, Debug)]
#[command(next_help_heading = "Bounds")]
pub(crate) struct Bounds {
    /// MiB that a request's body may have
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub(crate) max_body: u32,
    /// MiB that the bodies of all requests may have together
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..=65536))]
    pub(crate) max_bodies: u32,
    /// MiB that decoding a picture may take: 3 bytes a pixel, of a progressive JPEG 6
    #[arg(long, default_value_t = 192, value_parser = clap::value_parser!(u32).range(1..=65536))]
    pub(crate) max_picture: u32,
    /// Pictures in a request
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub(crate) max_pictures: u32,
    /// Pictures in the folder of --collect
    #[arg(long, default_value_t = 10_000)]
    pub(crate) max_collected: u32,
    /// MiB of them
    #[arg(long, default_value_t = 1024)]
    pub(crate) max_collected_size: u32,
    /// Requests that are answered at the same time, from when their body is there
    #[arg(long, default_value_t = 128, value_parser = clap::value_parser!(u32).range(1..=65536))]
    pub(crate) max_requests: u32,
    /// Pictures that wait for the network
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..=65536))]
    pub(crate) max_queue: u32,
    /// Connections
    #[arg(long, default_value_t = 512, value_parser = clap::value_parser!(u32).range(1..=65536))]
    pub(crate) max_connections: u32,
    /// Connections from one address
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..=65536))]
    pub(crate) max_connections_per_address: u32,
    /// Seconds for a request's header, on a new connection or one that is idle, and for TLS to begin
    #[arg(long, default_value = "15", value_parser = seconds)]
    pub(crate) header_timeout: Duration,
    /// Seconds for a request's body
    #[arg(long, default_value = "30", value_parser = seconds)]
    pub(crate) body_timeout: Duration,
    /// Seconds in which a client that is sent an answer takes in some of it
    #[arg(long, default_value = "15", value_parser = seconds)]
    pub(crate) answer_timeout: Duration,
    /// Seconds for a whole request
    #[arg(long, default_value = "60", value_parser = seconds)]
    pub(crate) request_timeout: Duration,
    /// Pictures that the network takes together
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub(crate) batch: u32,
    /// Milliseconds that a picture waits for others while those are being decoded
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(0..=1000))]
    pub(crate) wait: u32,
}

fn seconds(text: &str) -> Result<Duration, String> {
    let number = text.parse::<f64>().ok();
    let number = number.filter(|number| (0.001..=86_400.).contains(number));
    number
        .map(Duration::from_secs_f64)
        .ok_or_else(|| "expected seconds, at most a day".into())
}

impl Options {
    /// Says what is not safe in them, if anything is.
    pub(crate) fn unsafe_because(&self) -> Option<&'static str> {
        let is_open = !self.host.is_loopback();
        if self.token.as_deref().is_some_and(|token| token.len() < 16) {
            return Some("a token has at least 16 characters");
        }
        match (is_open, &self.token, &self.tls_cert) {
            (true, None, _) | (true, _, None) => Some(
                "others than this machine only get to a server with --token (or SERVE_TOKEN), --tls-cert and --tls-key",
            ),
            _ => None,
        }
    }

    /// Returns the model's name: letters, digits and `-_.`.
    pub(crate) fn model_name(&self) -> String {
        let stem = self.model.file_stem().unwrap_or_default();
        let name = self.name.clone();
        let name = name.unwrap_or_else(|| stem.to_string_lossy().into_owned());
        let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        name.chars()
            .map(|c| if is_plain(c) { c } else { '_' })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(words: &str) -> Options {
        Options::try_parse_from(["serve"].into_iter().chain(words.split(' '))).unwrap()
    }

    #[test]
    fn others_than_this_machine_are_let_in_by_token_and_tls_only() {
        let token = "--token 0123456789abcdef";
        let tls = "--tls-cert c --tls-key k";
        for (words, safe) in [
            ("m".to_owned(), true),
            ("m --host ::1".into(), true),
            ("m --host 0.0.0.0".into(), false),
            (format!("m --host 0.0.0.0 {token}"), false),
            (format!("m --host 0.0.0.0 {tls}"), false),
            (format!("m --host 0.0.0.0 {token} {tls}"), true),
            ("m --token short".into(), false),
        ] {
            assert_eq!(parsed(&words).unsafe_because().is_none(), safe, "{words}");
        }
    }

    #[test]
    fn a_models_name_is_that_of_its_file_unless_it_is_given() {
        assert_eq!(
            parsed("a/my_cats.v2.safetensors").model_name(),
            "my_cats.v2"
        );
        assert_eq!(parsed("a/b --name é/x").model_name(), "__x");
    }
}
