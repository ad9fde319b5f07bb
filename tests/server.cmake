# What the server's tests need beyond the pattern of CMakeLists.txt: models that are
# only pretended (as objects, so that they win over the archives), Python, fuzzing.
add_library(merx_fake OBJECT fake_generator.c fake_tokenizer.c fake_app.c)
target_link_libraries(merx_fake PUBLIC merx_models)
# The archives hold the real ones too, and other parts of them may be needed: the objects come first.
target_link_options(merx_fake PUBLIC -Wl,--allow-multiple-definition)
foreach(name test_server test_server_load test_server_rate test_server_allocations test_server_engine test_swap)
  if(NOT name MATCHES "test_(server_(engine|allocations)|swap)")
    target_link_libraries(${name} PRIVATE merx_fake)
  endif()
  set_tests_properties(${name} PROPERTIES TIMEOUT 300)
  if(MERX_SANITIZE STREQUAL "thread")
    # gRPC and protobuf-c are not instrumented: their own locking is invisible to tsan.
    set_tests_properties(${name} PROPERTIES ENVIRONMENT "TSAN_OPTIONS=ignore_noninstrumented_modules=1")
  endif()
endforeach()

# A Python client: Debian's python3-grpcio and python3-protobuf; skipped when absent.
add_executable(fake_server fake_server.c)
target_link_libraries(fake_server PRIVATE merx_fake merx_server merx_models)
set(python_wire ${CMAKE_CURRENT_BINARY_DIR}/python)
file(MAKE_DIRECTORY ${python_wire})
add_custom_command(
  OUTPUT ${python_wire}/merx_pb2.py
  COMMAND ${PROTOC} --python_out=${python_wire} -I ${PROJECT_SOURCE_DIR}/proto ${PROJECT_SOURCE_DIR}/proto/merx.proto
  DEPENDS ${PROJECT_SOURCE_DIR}/proto/merx.proto VERBATIM)
add_custom_target(python_wire ALL DEPENDS ${python_wire}/merx_pb2.py)
find_program(SYSTEM_PYTHON python3 PATHS /usr/bin NO_DEFAULT_PATH)
if(SYSTEM_PYTHON)
  add_test(NAME test_server_python
           COMMAND ${SYSTEM_PYTHON} ${CMAKE_CURRENT_SOURCE_DIR}/test_server_python.py $<TARGET_FILE:fake_server> ${python_wire})
  set_tests_properties(test_server_python PROPERTIES SKIP_RETURN_CODE 77 TIMEOUT 120)
  if(MERX_SANITIZE STREQUAL "thread")
    set_tests_properties(test_server_python PROPERTIES ENVIRONMENT "TSAN_OPTIONS=ignore_noninstrumented_modules=1")
  endif()
endif()

# The program itself, as a person runs it.
if(SYSTEM_PYTHON)
  add_test(NAME test_train_run COMMAND ${SYSTEM_PYTHON} ${CMAKE_CURRENT_SOURCE_DIR}/test_train_run.py $<TARGET_FILE:merx> ${PROJECT_SOURCE_DIR})
  set_tests_properties(test_train_run PROPERTIES TIMEOUT 600)
endif()
target_link_libraries(test_cli PRIVATE PkgConfig::JANSSON)
add_dependencies(test_cli merx)
add_dependencies(test_load merx)
set_tests_properties(test_cli PROPERTIES TIMEOUT 300)
if(SYSTEM_PYTHON)
  add_test(NAME test_pricing_python COMMAND ${SYSTEM_PYTHON} ${CMAKE_CURRENT_SOURCE_DIR}/test_pricing_python.py $<TARGET_FILE:merx> ${python_wire})
  set_tests_properties(test_pricing_python PROPERTIES SKIP_RETURN_CODE 77 TIMEOUT 120)
  add_test(NAME test_profiles_python
           COMMAND ${SYSTEM_PYTHON} ${CMAKE_CURRENT_SOURCE_DIR}/test_profiles_python.py $<TARGET_FILE:merx> ${PROJECT_SOURCE_DIR} ${python_wire})
  set_tests_properties(test_profiles_python PROPERTIES SKIP_RETURN_CODE 77 TIMEOUT 200)
endif()
