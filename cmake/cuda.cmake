# The CUDA backend, compiled by nvcc where there is one.  The objects become part of
# the ordinary libraries; cudart is linked statically and cuBLASLt is loaded at
# run time, so the binary starts on a machine without a driver or a GPU.
set(MERX_WITH_CUDA OFF)
set(MERX_CUDA_TARGETS
    -gencode=arch=compute_80,code=sm_80 -gencode=arch=compute_90a,code=sm_90a -gencode=arch=compute_90,code=compute_90
    CACHE STRING "what nvcc compiles for")
if(NOT MERX_CUDA STREQUAL "off")
  find_program(NVCC nvcc HINTS $ENV{CUDA_HOME}/bin /usr/local/cuda/bin)
  if(NVCC)
    get_filename_component(cuda_real ${NVCC} REALPATH)
    get_filename_component(cuda_bin ${cuda_real} DIRECTORY)
    get_filename_component(CUDA_ROOT ${cuda_bin} DIRECTORY)
    find_library(CUDART_STATIC libcudart_static.a PATHS ${CUDA_ROOT}/lib64 ${CUDA_ROOT}/targets/x86_64-linux/lib NO_DEFAULT_PATH)
  endif()
  if(NVCC AND CUDART_STATIC AND NOT MERX_SANITIZE)
    set(MERX_WITH_CUDA ON)
    message(STATUS "CUDA backend: ${NVCC}")
  elseif(MERX_CUDA STREQUAL "on")
    message(FATAL_ERROR "MERX_CUDA=on, but nvcc or libcudart_static.a is not found, or the build is a sanitizer's")
  else()
    message(STATUS "CUDA backend: left out")
  endif()
endif()

# merx_cuda_sources(TARGET files...): compile the files with nvcc into TARGET.
function(merx_cuda_sources target)
  foreach(file ${ARGN})
    get_filename_component(name ${file} NAME_WE)
    set(object ${CMAKE_CURRENT_BINARY_DIR}/cuda_${name}.o)
    add_custom_command(
      OUTPUT ${object}
      COMMAND ${PROJECT_SOURCE_DIR}/cmake/nvcc.sh ${object}.ptxas ${PROJECT_SOURCE_DIR}/kernels/cuda/spills.txt
              ${NVCC} -std=c++17 -O3 -lineinfo ${MERX_CUDA_TARGETS} -ccbin ${CMAKE_C_COMPILER} -I${PROJECT_SOURCE_DIR}
              -D_GNU_SOURCE -Xcompiler -Wall,-Wextra,-Wno-unknown-pragmas,-g1 -Werror all-warnings -MD -MF ${object}.d -c ${file} -o ${object}
      DEPENDS ${file} ${PROJECT_SOURCE_DIR}/kernels/cuda/spills.txt ${PROJECT_SOURCE_DIR}/cmake/nvcc.sh DEPFILE ${object}.d COMMENT "nvcc ${name}.cu" VERBATIM)
    target_sources(${target} PRIVATE ${object})
    set_source_files_properties(${object} PROPERTIES EXTERNAL_OBJECT ON GENERATED ON)
  endforeach()
  target_link_libraries(${target} PUBLIC ${CUDART_STATIC} stdc++ rt dl)
endfunction()
