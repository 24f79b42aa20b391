// Adds the training operations to the module.
#pragma once

#include <pybind11/pybind11.h>

namespace sorl::train {

void bind(pybind11::module_& m);

}  // namespace sorl::train
