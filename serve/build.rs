//! Lets this crate's program and tests find libtorch at run time without `LD_LIBRARY_PATH`.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    // Nothing where `support` is built for the documentation.
    if let Ok(library) = std::env::var("DEP_SUPPORT_TORCH_LIBTORCH") {
        println!("cargo:rustc-link-arg=-Wl,-rpath,{library}");
    }
}
