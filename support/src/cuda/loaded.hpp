// What libtorch's CUDA half has loaded, by name: it is not linked (see device.rs), and its headers cannot be compiled
// with what the wheels bring of CUDA.

#pragma once

#include <c10/util/Exception.h>

#include <dlfcn.h>

template <typename F>
F *loaded(const char *name) {
  void *found = dlsym(RTLD_DEFAULT, name);
  TORCH_CHECK(found, "there is no ", name, ": libtorch's CUDA half is not loaded");
  return reinterpret_cast<F *>(found);
}
