# CUDA kernels (*.cu) are built where the toolkit is; elsewhere core/ops/no_cuda.cc stands in.
#
# libcuda is never linked (without a driver the program would not start), and libcublasLt is loaded
# at the first product on a GPU: 540 MB that every start of the program would map otherwise.
set(CADRE_CUDA AUTO CACHE STRING "Build the CUDA kernels: AUTO, ON or OFF")
set_property(CACHE CADRE_CUDA PROPERTY STRINGS AUTO ON OFF)

set(CADRE_CUDA_FOUND OFF)
if(NOT CADRE_CUDA STREQUAL "OFF")
  include(CheckLanguage)
  # One architecture keeps the build short; name others with -DCMAKE_CUDA_ARCHITECTURES.
  if(NOT DEFINED CMAKE_CUDA_ARCHITECTURES)
    set(CMAKE_CUDA_ARCHITECTURES 90)
  endif()
  check_language(CUDA)
  if(CMAKE_CUDA_COMPILER)
    enable_language(CUDA)
    find_package(CUDAToolkit REQUIRED)
    set(CMAKE_CUDA_STANDARD 17)
    set(CMAKE_CUDA_STANDARD_REQUIRED ON)
    set(CADRE_CUDA_FOUND ON)
  elseif(CADRE_CUDA STREQUAL "ON")
    message(FATAL_ERROR "CADRE_CUDA is ON, but nvcc is neither on PATH nor named by CUDACXX")
  endif()
endif()
message(STATUS "CUDA kernels: ${CADRE_CUDA_FOUND}")
