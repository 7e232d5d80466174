//! Lets this crate's tests, examples and programs find libtorch at run time without
//! `LD_LIBRARY_PATH`: `torch-sys` links it but leaves no trace of where it lies.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    if let Ok(libtorch) = std::env::var("DEP_TCH_LIBTORCH_LIB") {
        println!("cargo:rustc-link-arg=-Wl,-rpath,{libtorch}");
    }
}
