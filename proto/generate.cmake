# generate.cmake - shardd_proto: C for the public .proto files, and their descriptors for reflection.
# Included by CMakeLists.txt here. The daemon and the client verbs of the launcher link it:
#   #include "shardd/v1/shardd.pb-c.h"       every string is a ProtobufCBinaryData
#   #include "shardd_descriptor_set.h"       a serialized FileDescriptorSet of the published files
find_program(PROTOC protoc REQUIRED)
find_program(PROTOC_GEN_C protoc-gen-c REQUIRED)

set(PROTO_FILES shardd/v1/shardd.proto grpc/health/v1/health.proto grpc/reflection/v1/reflection.proto
  grpc/reflection/v1alpha/reflection.proto)
set(PROTO_GEN ${CMAKE_CURRENT_BINARY_DIR}/gen)
set(PROTO_TOOLS ${CMAKE_CURRENT_SOURCE_DIR}/generate)
file(MAKE_DIRECTORY ${PROTO_GEN})

set(proto_sources "")
set(proto_clean "")
foreach(file ${PROTO_FILES})
  string(REPLACE ".proto" "" stem ${file})
  set(copy ${PROTO_GEN}/copy/${file})
  add_custom_command(
    OUTPUT ${PROTO_GEN}/${stem}.pb-c.c ${PROTO_GEN}/${stem}.pb-c.h
    COMMAND ${CMAKE_COMMAND} -DIN=${CMAKE_CURRENT_SOURCE_DIR}/${file} -DOUT=${copy}
      -P ${PROTO_TOOLS}/string_as_bytes.cmake
    COMMAND ${PROTOC} --plugin=protoc-gen-c3=${PROTO_TOOLS}/protoc-gen-c3 --c3_out=${PROTO_GEN}
      -I${PROTO_GEN}/copy -I/usr/include ${file}
    DEPENDS ${file} ${PROTO_TOOLS}/string_as_bytes.cmake ${PROTO_TOOLS}/protoc-gen-c3
    COMMENT "C for ${file}" VERBATIM)
  list(APPEND proto_sources ${PROTO_GEN}/${stem}.pb-c.c)
  list(APPEND proto_clean ${CMAKE_CURRENT_SOURCE_DIR}/${file})
endforeach()

add_custom_command(
  OUTPUT ${PROTO_GEN}/shardd_descriptor_set.c
  COMMAND ${PROTOC} -I${CMAKE_CURRENT_SOURCE_DIR} --include_imports
    --descriptor_set_out=${PROTO_GEN}/descriptor_set.pb ${PROTO_FILES}
  COMMAND ${CMAKE_COMMAND} -DIN=${PROTO_GEN}/descriptor_set.pb -DOUT=${PROTO_GEN}/shardd_descriptor_set.c
    -DNAME=shardd_descriptor_set -P ${CMAKE_SOURCE_DIR}/base/embed.cmake
  DEPENDS ${proto_clean} ${CMAKE_SOURCE_DIR}/base/embed.cmake
  COMMENT "descriptors for reflection" VERBATIM)

add_library(shardd_proto STATIC ${proto_sources} ${PROTO_GEN}/shardd_descriptor_set.c)
target_include_directories(shardd_proto SYSTEM PUBLIC ${PROTO_GEN})
target_include_directories(shardd_proto PUBLIC ${PROTO_TOOLS})
target_link_libraries(shardd_proto PUBLIC PkgConfig::PROTOBUFC)
target_compile_options(shardd_proto PRIVATE -w)
