"""Turns a preprocessed CUDA source with inline PTX into C++ for the emulated GPU, from standard input to standard output.

The argument is a file with the kernels to instantiate, one in each line: kernel_0, kernel_1, … call them."""
import re
import sys

OPERAND = re.compile(r'"[=+]?[a-z]"\s*\(')
TYPES = {"pred": "bool", "b32": "unsigned", "b16": "unsigned short"}


def closing(text, start):
    """The index of the parenthesis that closes the one at `start`."""
    depth, i = 0, start
    while True:
        if text[i] == '"':
            i = re.compile(r'"(?:[^"\\]|\\.)*"').match(text, i).end()
            continue
        depth += {"(": 1, ")": -1}.get(text[i], 0)
        if depth == 0:
            return i
        i += 1


def operands(text):
    """The expressions of "r"(x), "=f"(y), … in their order."""
    found, at = [], 0
    while match := OPERAND.search(text, at):
        end = closing(text, match.end() - 1)
        found.append(text[match.end():end])
        at = end
    return found


def translated(statement):
    """One PTX statement as C++."""
    if statement.startswith(".reg"):
        _, kind, names = statement.split(None, 2)
        return f"{TYPES[kind[1:]]} {names};"
    opcode, _, rest = statement.partition(" ")
    rest = rest.replace("_|", "").replace("_,", "")
    rest = re.sub(r"%%(\w+)", r"machine::ptx_\1()", rest)
    rest = re.sub(r"%(\d+)", r"operand\1", rest)
    rest = re.sub(r"\{([^}]*)\}", r"machine::list(\1)", rest)
    rest = rest.replace("[", "").replace("]", "")
    return f"machine::ptx_{re.sub(r'[.:]+', '_', opcode)}({rest.strip()});"


def replaced(body):
    """The statement of an asm's parentheses."""
    strings = re.match(r'\s*((?:"(?:[^"\\]|\\.)*"\s*)+)', body)
    template = "".join(re.findall(r'"((?:[^"\\]|\\.)*)"', strings[1]))
    template = template.replace("\\n", " ").replace("\\t", " ").strip()
    if not template:
        return "{}"
    inner = template[1:-1] if template.startswith("{") else template
    bound = [f"auto&& operand{i} = {text};" for i, text in enumerate(operands(body[strings.end():]))]
    statements = [translated(one.strip()) for one in inner.split(";") if one.strip()]
    return "{ " + " ".join(bound + statements) + " }"


def main():
    source = sys.stdin.read()
    source = re.sub(r"extern __shared__ (?:__align__\(\d+\) )?u8 (\w+)\[\];",
                    r"u8* const \1 = machine::dynamic_shared();", source)
    # Each block of a team has a thread of this machine. What a block leaves there, the next one finds.
    source = source.replace("__shared__", "static thread_local")
    parts, at = [], 0
    for match in re.finditer(r"\basm\s*(?:volatile\s*)?\(", source):
        end = closing(source, match.end() - 1)
        # As many lines as before, so that the compiler's messages name the right ones.
        parts += [source[at:match.start()], replaced(source[match.end():end]), "\n" * source.count("\n", match.start(), end)]
        at = source.index(";", end) + 1
    parts.append(source[at:])
    print('#include "tensor_core.h"')
    print("".join(parts))
    with open(sys.argv[1]) as file:
        kernels = file.read().splitlines()
    for i, kernel in enumerate(kernels):
        print(f'extern "C" const char* const kernel_{i}_name = "{kernel}";')
        print(f'extern "C" void kernel_{i}(void** arguments) {{ machine::call({kernel}, arguments); }}')


main()
