# SPDX-License-Identifier: Apache-2.0
# find_package(tvm_involution) gives the target tvm_involution::tvm_involution. `tvm-involution config --cmake` prints the
# options by which CMake finds this file and the packages tvm and tvm_ffi.
foreach(variable TVM_DIR TVM_FFI_DIR)
  if(NOT IS_DIRECTORY "${${variable}}/include")
    message(FATAL_ERROR "${variable} is '${${variable}}'; call cmake with $(tvm-involution config --cmake)")
  endif()
endforeach()
find_package(Threads REQUIRED)
add_library(tvm_involution::tvm_involution INTERFACE IMPORTED)
target_compile_features(tvm_involution::tvm_involution INTERFACE cxx_std_17)
target_include_directories(tvm_involution::tvm_involution INTERFACE
  "${CMAKE_CURRENT_LIST_DIR}/../include" "${TVM_DIR}/include" "${TVM_FFI_DIR}/include")
set(_libraries "${TVM_DIR}/lib/libtvm_runtime.so")
if(EXISTS "${TVM_DIR}/lib/libtvm_runtime_extra.so")
  list(APPEND _libraries "${TVM_DIR}/lib/libtvm_runtime_extra.so")
endif()
# the runtime registers itself when it is loaded; nothing in a program names it
target_link_libraries(tvm_involution::tvm_involution INTERFACE
  "-Wl,--no-as-needed" ${_libraries} "${TVM_FFI_DIR}/lib/libtvm_ffi.so" "-Wl,--as-needed" Threads::Threads)
if(CMAKE_CROSSCOMPILING)
  target_link_options(tvm_involution::tvm_involution INTERFACE "-Wl,--allow-shlib-undefined")
endif()
