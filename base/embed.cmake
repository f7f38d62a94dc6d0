# embed.cmake - makes a C array of a file.
#   cmake -DIN=file -DOUT=array.c -DNAME=symbol -P embed.cmake      gives NAME[] and NAME_bytes
file(READ "${IN}" hex HEX)
string(LENGTH "${hex}" digits)
math(EXPR bytes "${digits} / 2")
string(REGEX REPLACE "(................................)" "\\1\n" hex "${hex}")
string(REGEX REPLACE "([0-9a-f][0-9a-f])" "0x\\1," hex "${hex}")
file(WRITE "${OUT}" "#include \"${NAME}.h\"\n\nconst unsigned char ${NAME}[] = {\n${hex}\n};\nconst size_t ${NAME}_bytes = ${bytes};\n")
