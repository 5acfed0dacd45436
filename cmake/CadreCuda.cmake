# CUDA kernels (*.cu) are built where the toolkit is; elsewhere core/ops/no_cuda.cc stands in.
#
# libcuda is never linked (without a driver the program would not start), and libcublasLt is loaded
# at the first product on a GPU: 540 MB that every start of the program would map otherwise. So is
# libnccl, 220 MB, at the first device: linked statically it would be in the program for good, linked
# shared the program would not start without it. Of both only headers are needed here.
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

set(CADRE_NCCL_FOUND OFF)
if(CADRE_CUDA_FOUND)
  find_path(CADRE_NCCL_INCLUDE_DIR nccl.h HINTS ${CUDAToolkit_INCLUDE_DIRS})
  # Where it is looked for besides the system's places; an empty path is none.
  find_library(CADRE_NCCL_FILE nccl HINTS ${CUDAToolkit_LIBRARY_DIR})
  set(CADRE_NCCL_LIBRARY "")
  if(CADRE_NCCL_FILE)
    file(REAL_PATH ${CADRE_NCCL_FILE} CADRE_NCCL_LIBRARY)
  endif()
  if(CADRE_NCCL_INCLUDE_DIR)
    set(CADRE_NCCL_FOUND ON)
    message(STATUS "NCCL: nccl.h in ${CADRE_NCCL_INCLUDE_DIR}, library (loaded when used): ${CADRE_NCCL_FILE}")
  else()
    message(STATUS "NCCL: no nccl.h found (-DCADRE_NCCL_INCLUDE_DIR=...), built without groups on GPUs")
  endif()
else()
  message(STATUS "NCCL: OFF, as CUDA is")
endif()
