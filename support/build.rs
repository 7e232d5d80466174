//! Compiles the C++ that reaches the libtorch operators which tch leaves out, and lets this
//! crate's tests, examples and programs find libtorch at run time without `LD_LIBRARY_PATH`:
//! `torch-sys` links it but leaves no trace of where it lies.

use std::path::Path;

const SOURCE: &str = "src/model/fused.cpp";

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed={SOURCE}");
    // torch-sys says which libtorch it was built for, unless it was built for the documentation.
    let Ok(library) = std::env::var("DEP_TCH_LIBTORCH_LIB") else {
        return;
    };
    println!("cargo:rustc-link-arg=-Wl,-rpath,{library}");
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
        .file(SOURCE)
        .include(include)
        .compile("support_fused");
}
