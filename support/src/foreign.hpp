// What the functions that Rust calls have in common: foreign.rs.

#pragma once

#include <cstring>
#include <exception>

// Returns what `f` returns, a pointer; where it throws, null, and writes the exception's text into `error`, which is
// zero-filled.
template <typename F>
auto tried(F f, char *error, size_t error_size) -> decltype(f()) {
  try {
    return f();
  } catch (const std::exception &exception) {
    std::strncpy(error, exception.what(), error_size - 1);
  } catch (...) {
    std::strncpy(error, "an unknown exception", error_size - 1);
  }
  return nullptr;
}

// The same for what `f` returns by value, to be owned by the caller.
template <typename F>
auto handed_over(F f, char *error, size_t error_size) {
  return tried([&] { return new auto(f()); }, error, error_size);
}
