//! Compiles the C++ that reaches what tch leaves out of libtorch, and lets this crate's tests, examples
//! and programs find libtorch at run time without `LD_LIBRARY_PATH`: `torch-sys` links it but leaves no
//! trace of where it lies.

use std::path::Path;

const SOURCES: [&str; 4] = [
    "src/model/fused.cpp",
    "src/cuda/cuda.cpp",
    "src/distributed/c10d.cpp",
    "src/distributed/nccl.cpp",
];
const HEADERS: [&str; 2] = ["src/foreign.hpp", "src/cuda/loaded.hpp"];
/// Stands in for the headers of Gloo.
const GLOO: &str = "src/distributed/gloo";

fn main() {
    for path in SOURCES.iter().chain(&HEADERS).chain(&["build.rs", GLOO]) {
        println!("cargo:rerun-if-changed={path}");
    }
    // torch-sys says which libtorch it was built for, unless it was built for the documentation.
    let Ok(library) = std::env::var("DEP_TCH_LIBTORCH_LIB") else {
        return;
    };
    println!("cargo:rustc-link-arg=-Wl,-rpath,{library}");
    // To the build scripts of programs: `DEP_SUPPORT_TORCH_LIBTORCH`.
    println!("cargo:libtorch={library}");
    // OpenVINO, if wanted, is looked for in the same environment.
    println!("cargo:rustc-env=SUPPORT_LIBTORCH={library}");
    let include = Path::new(&library).with_file_name("include");
    assert!(
        include.join("ATen").is_dir(),
        "{} holds no libtorch headers: LIBTORCH has to name the folder of a whole libtorch",
        include.display()
    );
    cc::Build::new()
        .cpp(true)
        .std("c++17")
        .opt_level(2)
        .debug(false)
        .warnings(false)
        .define("USE_DISTRIBUTED", None)
        .define("USE_C10D_GLOO", None)
        .files(SOURCES)
        .include(include.join("torch/csrc/api/include"))
        .include(include)
        .include(Path::new(GLOO).with_file_name(""))
        .include("src")
        .compile("support_torch");
}
