// Work without the interpreter lock: the one way in which the bindings let go of it.
//
// A daemon thread that wants the lock back while the interpreter ends never gets it. Up to Python 3.13 it
// ends there by pthread_exit, which unwinds the stack: through a noexcept function or a destructor, such as
// that of pybind11::gil_scoped_release, this terminates the process, and elsewhere destructors would count
// references without the lock. Python 3.14 lets the thread hang instead, and so does this, everywhere.
#pragma once

#include <pybind11/pybind11.h>
#include <unistd.h>

#include <exception>

namespace sorl {

// Not inline code of the caller, which may be noexcept: there, no cleanup need run before std::terminate.
[[gnu::noinline]] inline void take_gil_back(PyThreadState* state) {
  struct Unwound {
    bool expected = false;
    ~Unwound() {
      while (!expected) pause();  // until the process ends
    }
  } unwound;
  PyEval_RestoreThread(state);
  unwound.expected = true;
}

// Calls work() without the lock; what it throws is thrown when the lock is back.
template <class Work>
void without_gil(Work work) {
  PyThreadState* const state = PyEval_SaveThread();
  std::exception_ptr thrown;
  try {
    work();
  } catch (...) {
    thrown = std::current_exception();
  }
  take_gil_back(state);
  if (thrown) std::rethrow_exception(thrown);
}

}  // namespace sorl
