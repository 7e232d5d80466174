//! Fetches what the notebook needs ahead of time, and lists what can be fetched.

use std::process::ExitCode;

use support::Result;
use support::assets::Assets;
use support::settings::Settings;

const USAGE: &str = "\
usage: assets list            what can be fetched, and what is here
       assets fetch NAME..    fetches by name";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let done = match arguments.as_slice() {
        ["list"] => list(),
        ["fetch", names @ ..] if !names.is_empty() => fetch(names),
        _ => {
            eprintln!("{USAGE}");
            return ExitCode::from(2);
        }
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn list() -> Result<()> {
    let settings = Settings::from_env()?;
    print!("{}", Assets::open(&settings.data_dir)?.list());
    Ok(())
}

fn fetch(names: &[&str]) -> Result<()> {
    let settings = Settings::from_env()?;
    let assets = Assets::open(&settings.data_dir)?;
    for name in names {
        println!("{name}: {}", assets.fetch(name)?.display());
    }
    Ok(())
}
