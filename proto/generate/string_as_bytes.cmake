# string_as_bytes.cmake - makes the copy of a .proto file that C is generated from.
#   cmake -DIN=x.proto -DOUT=copy.proto -P string_as_bytes.cmake
# protobuf-c cuts a string at its first NUL and takes invalid UTF-8. With string_as_bytes a string has a length,
# and the daemon validates it. The option stays out of the published file: reflection would show it.
file(READ "${IN}" text)
string(REGEX REPLACE "(\n *(optional |repeated )?string [a-z_0-9]+ = [0-9]+);"
  "\\1 [(pb_c_field).string_as_bytes = true];" text "${text}")
if(text MATCHES "\n *(optional |repeated )?string [a-z_0-9]+ = [0-9]+ *;" OR text MATCHES "map<string|, *string>")
  message(FATAL_ERROR "${IN}: a string field that string_as_bytes.cmake cannot rewrite; write it as `string name = N;`")
endif()
string(REGEX REPLACE "\n(package [a-zA-Z0-9_.]+;)" "\n\\1\nimport \"protobuf-c/protobuf-c.proto\";" text "${text}")
file(WRITE "${OUT}" "${text}")
