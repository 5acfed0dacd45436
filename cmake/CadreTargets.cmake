# One library per folder, its unit tests beside it.

set(CMAKE_CXX_STANDARD 20)
set(CMAKE_CXX_STANDARD_REQUIRED ON)
set(CMAKE_CXX_EXTENSIONS OFF)
set(CMAKE_EXPORT_COMPILE_COMMANDS ON)
set(CMAKE_RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR})

find_program(CADRE_CCACHE ccache)
if(CADRE_CCACHE)
  set(CMAKE_CXX_COMPILER_LAUNCHER ${CADRE_CCACHE})
  set(CMAKE_C_COMPILER_LAUNCHER ${CADRE_CCACHE})
endif()
find_program(CADRE_MOLD mold)
if(CADRE_MOLD)
  add_link_options(-fuse-ld=mold)
endif()

add_compile_options("$<$<COMPILE_LANGUAGE:C,CXX>:-Wall;-Wextra;-Wno-unused-parameter;-Wno-missing-field-initializers>")
include_directories(${CMAKE_SOURCE_DIR} ${CMAKE_BINARY_DIR})

# Sources that need an instruction set of their own are dispatched at run time;
# the file name says which: *_avx512bf16.cc, *_amx.cc.
function(cadre_isa_flags)
  foreach(source ${ARGN})
    if(source MATCHES "_avx512bf16\\.cc$")
      set_source_files_properties(${source} PROPERTIES COMPILE_OPTIONS
        "-mavx512f;-mavx512bw;-mavx512vl;-mavx512dq;-mavx512bf16;-mfma;-Wno-uninitialized;-Wno-maybe-uninitialized")
    elseif(source MATCHES "_amx\\.cc$")
      set_source_files_properties(${source} PROPERTIES COMPILE_OPTIONS
        "-mavx512f;-mavx512bw;-mavx512vl;-mavx512dq;-mavx512bf16;-mfma;-mamx-tile;-mamx-bf16;-Wno-uninitialized;-Wno-maybe-uninitialized")
    endif()
  endforeach()
endfunction()

# cadre_library(NAME DEPS target...): every *.cc of this folder that is no test,
# as the static library cadre_NAME; every *_test.cc as one program
# cadre_NAME_test; every *_fuzz.cc as a libFuzzer program (CADRE_FUZZERS).
function(cadre_library NAME)
  cmake_parse_arguments(ARG "" "" "DEPS" ${ARGN})
  file(GLOB all CONFIGURE_DEPENDS ${CMAKE_CURRENT_SOURCE_DIR}/*.cc)
  set(sources ${all})
  list(FILTER sources EXCLUDE REGEX "_(test|fuzz)\\.cc$")
  set(tests ${all})
  list(FILTER tests INCLUDE REGEX "_test\\.cc$")
  set(fuzzers ${all})
  list(FILTER fuzzers INCLUDE REGEX "_fuzz\\.cc$")
  cadre_isa_flags(${sources})
  if(sources)
    add_library(cadre_${NAME} STATIC ${sources})
    target_link_libraries(cadre_${NAME} PUBLIC ${ARG_DEPS})
  else()
    add_library(cadre_${NAME} INTERFACE)
    target_link_libraries(cadre_${NAME} INTERFACE ${ARG_DEPS})
  endif()
  if(tests)
    add_executable(cadre_${NAME}_test ${tests})
    target_link_libraries(cadre_${NAME}_test PRIVATE cadre_${NAME} GTest::gtest GTest::gmock GTest::gtest_main)
    add_test(NAME ${NAME} COMMAND cadre_${NAME}_test)
    set_tests_properties(${NAME} PROPERTIES
      WORKING_DIRECTORY ${CMAKE_SOURCE_DIR} ENVIRONMENT "OMP_WAIT_POLICY=passive" TIMEOUT 900)
  endif()
  if(CADRE_FUZZERS)
    foreach(fuzzer ${fuzzers})
      get_filename_component(fuzz_name ${fuzzer} NAME_WE)
      add_executable(${fuzz_name} ${fuzzer})
      target_compile_options(${fuzz_name} PRIVATE -fsanitize=fuzzer)
      target_link_options(${fuzz_name} PRIVATE -fsanitize=fuzzer)
      target_link_libraries(${fuzz_name} PRIVATE cadre_${NAME})
    endforeach()
  endif()
endfunction()
