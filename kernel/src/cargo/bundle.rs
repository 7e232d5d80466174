//! All that a cell depends on, in one shared library.
//!
//! Linked with each library, a cell takes in a hundred of them, most of the time that it takes to
//! build, and has a megabyte of its own of what they hold. Linked with this, it takes in one.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::cell::{Compiled, stamp};
use super::run::Run;
use crate::unless_missing;

/// C functions, too, which the compiler has a library keep to itself: a generic function that calls
/// one is compiled in the cell.
const EXPORTS: &str = "{ global: *; };\n";

/// What a linker takes for a library without symbols.
const EMPTY_LIBRARY: &str = "GROUP()\n";

#[derive(Serialize, Deserialize)]
pub(super) struct Bundle {
    name: String,
    folder: PathBuf,
}

impl Bundle {
    fn library(&self) -> PathBuf {
        self.folder.join(format!("lib{}.so", self.name))
    }

    /// Returns the folder of libraries without symbols.
    fn empty(&self) -> PathBuf {
        self.folder.join("empty")
    }

    /// Makes the one for a cell that is compiled like this, unless it is there. Returns `None` where
    /// a cell depends on nothing.
    pub(super) fn of(run: &Run) -> anyhow::Result<Option<Self>> {
        let dependencies: BTreeSet<_> = run.dependencies().collect();
        // Other systems' linkers are told in other ways what to export.
        if dependencies.is_empty() || !cfg!(target_os = "linux") {
            return Ok(None);
        }
        let mut hasher = DefaultHasher::new();
        for (name, path) in dependencies {
            (name, path.file_name(), stamp(path)).hash(&mut hasher);
        }
        let name = format!("cell_dependencies_{:016x}", hasher.finish());
        let written = run.value("--out-dir").context("no folder for the cell")?;
        let folder = Path::new(written).with_file_name("bundle");
        let bundle = Self { name, folder };
        if !bundle.library().exists() {
            // A process keeps what it has of an older one.
            unless_missing(fs::remove_dir_all(&bundle.folder))?;
            bundle.build(run)?;
        }
        Ok(Some(bundle))
    }

    fn build(&self, run: &Run) -> anyhow::Result<()> {
        fs::create_dir_all(self.empty())?;
        // To read its hundred thousand symbols takes long, and they are the bundle's affair.
        if let Some(libtorch) = run.variable("LIBTORCH") {
            for library in fs::read_dir(Path::new(libtorch).join("lib"))? {
                let name = library?.file_name();
                if Path::new(&name).extension().is_some_and(|end| end == "so") {
                    fs::write(self.empty().join(name), EMPTY_LIBRARY)?;
                }
            }
        }
        let [source, exports] = ["bundle.rs", "exports"].map(|name| self.folder.join(name));
        // The linker takes the library's name from that of the file.
        let library = self.library();
        let unfinished = self.empty().join(library.file_name().context("no name")?);
        let crates = run
            .dependencies()
            .map(|(name, _)| format!("pub extern crate {name};\n"));
        fs::write(&source, crates.collect::<String>())?;
        fs::write(&exports, EXPORTS)?;
        let places = ["-L", "--extern"].map(|option| (option, run.values(option)));
        let places = places
            .into_iter()
            .flat_map(|(option, values)| values.flat_map(move |value| [option, value]));
        let built = run
            .compiler()
            .args([
                "--crate-name",
                &self.name,
                "--crate-type",
                "dylib",
                "--edition=2024",
            ])
            .args(["-C", "prefer-dynamic", "-C", "strip=debuginfo", "-C"])
            .arg(format!(
                "link-arg=-Wl,--version-script={}",
                exports.display()
            ))
            .args(places)
            .arg("-o")
            .args([&unfinished, &source])
            .output()?;
        let said = String::from_utf8_lossy(&built.stderr);
        ensure!(built.status.success(), "{}", said.trim());
        Ok(fs::rename(&unfinished, library)?)
    }

    /// Has `compile` compile the cell in `folder` with other arguments, so that it is linked with this.
    /// Returns `None` where that is what fails.
    pub(super) fn link(
        &self,
        run: &Run,
        folder: &Path,
        compile: impl FnOnce(&[String]) -> anyhow::Result<Compiled>,
    ) -> anyhow::Result<Option<Compiled>> {
        let mut source = run.arguments.iter().filter(|word| word.ends_with(".rs"));
        let source = folder.join(source.next().context("no source")?);
        // At the end, where it moves no line.
        let mut source = File::options().append(true).open(source)?;
        let length = source.metadata()?.len();
        writeln!(source, "\nextern crate {} as _;", self.name)?;
        let options = [
            "-L".to_owned(),
            format!("native={}", self.empty().display()),
            "--extern".to_owned(),
            format!("{}={}", self.name, self.library().display()),
            // What is missing is found here, not when the cell runs.
            format!(
                "-Clink-args=-Wl,-z,defs -Wl,-rpath,{}",
                self.folder.display()
            ),
        ];
        let arguments: Vec<_> = options
            .into_iter()
            .chain(run.arguments.iter().cloned())
            .collect();
        let compiled = compile(&arguments)?;
        source.set_len(length)?;
        let (succeeded, messages) = &compiled;
        let is_of_the_linker = |message: &Value| {
            message["message"]
                .as_str()
                .is_some_and(|text| text.starts_with("linking with"))
        };
        Ok((*succeeded || !messages.iter().any(is_of_the_linker)).then_some(compiled))
    }
}
