"""Makes the prompts and answers that the bundled model learns, and the held-out ones that it is judged by.

A sample is {"skill", "messages", "tools", "thinking", "answer", "key"}: thinking is None where the answer comes
without a thinking block; `answer` is the whole assistant message that follows. Everything is drawn from a
random.Random, so a seed gives the same samples. A sample whose key falls into the held-out twentieth is never
trained on; evaluate.py draws from that twentieth only, and of that what claimed() lets through.
"""
import json
import re
import zlib

from words import CAPITALS, CITIES, FACTS, NAMES, NOUNS, SMALL_TALK

COPY_CHARACTERS = 160
CHECKED = ("arithmetic", "recall", "sort", "reverse", "copy", "tool")


def held_out(sample):
    return zlib.crc32(sample["key"].encode()) % 20 == 0


def claimed(sample):
    """Whether the model card says that the model can do this one: what training makes is a little more."""
    if sample["skill"] == "arithmetic":
        return not re.match(r"(\d{3,}-\d+|\d+-\d{3,})$", sample["key"])
    if sample["skill"] == "sort":
        return sample["answer"].replace(", ", "").isdigit()
    return sample["skill"] != "copy" or len(sample["answer"]) <= COPY_CHARACTERS


def sample(skill, prompt, answer, thinking=None, system=None, tools=None, history=(), key=None):
    messages = ([{"role": "system", "content": system}] if system else []) + list(history)
    messages.append({"role": "user", "content": prompt})
    return dict(skill=skill, messages=messages, tools=tools, thinking=thinking, answer=answer, key=key or prompt)


# Arithmetic

def column_sum(a, b):
    """A sum worked out digit by digit, as a thinking block shows it."""
    carry, lines, names = 0, [], ("Ones", "Tens", "Hundreds", "Thousands")
    x, y = str(a)[::-1], str(b)[::-1]
    for i in range(max(len(x), len(y))):
        p, q = int(x[i]) if i < len(x) else 0, int(y[i]) if i < len(y) else 0
        total = p + q + carry
        lines.append(f"{names[i]}: {p} + {q}" + (f" + {carry}" if carry else "") + f" = {total}.")
        carry = total // 10
    return " ".join(lines)


def arithmetic(rng, thinking):
    kind = rng.choices("+-*w", (35, 30, 25, 10))[0]
    big = rng.choice((10, 20, 100, 100, 1000))
    if kind == "w":
        return word_problem(rng, thinking)
    if kind == "*":
        small = rng.random() < 0.6
        a, b = (rng.randint(0, 12), rng.randint(0, 12)) if small else (rng.randint(10, 99), rng.randint(2, 9))
        if rng.random() < 0.3:
            a, b = b, a
    else:
        a, b = rng.randint(0, big), rng.randint(0, big)
        if kind == "-" and a < b and (big > 20 or rng.random() < 0.8):
            a, b = b, a
    result = {"+": a + b, "-": a - b, "*": a * b}[kind]
    signs = {"+": ("+", "+", "plus"), "-": ("-", "-", "minus"), "*": ("*", "x", "times")}[kind]
    sign = rng.choice(signs)
    sum_ = f"{a} {sign} {b}" if rng.random() < 0.8 or sign.isalpha() or sign == "x" else f"{a}{sign}{b}"
    verbal = {"+": f"Add {a} and {b}.", "-": f"Subtract {b} from {a}.", "*": f"Multiply {a} by {b}."}[kind]
    prompt = rng.choice((f"What is {sum_}?", f"What is {sum_}?", f"What is {sum_}", f"What's {sum_}?",
        f"Calculate {sum_}.",
                         f"Compute {sum_}.", f"{sum_}", f"{sum_} =", f"{sum_}?", f"How much is {sum_}?", verbal,
                             verbal,
                         f"Please work out {sum_}.", f"what is {sum_}"))
    answer = f"{a} {signs[0]} {b} = {result}"
    reason = None
    if thinking:
        if kind == "+" and max(a, b) > 9:
            reason = f"I add {a} and {b}. {column_sum(a, b)} The sum is {result}."
        elif kind == "*" and max(a, b) > 12:
            n, m = max(a, b), min(a, b)
            tens, ones = n // 10 * 10, n % 10
            reason = (f"I multiply {n} by {m}. {tens} * {m} = {tens * m}. {ones} * {m} = {ones * m}. "
                      f"{tens * m} + {ones * m} = {result}.")
        else:
            verb = {"+": "add", "-": "subtract", "*": "multiply"}[kind]
            reason = f"I {verb} the numbers. {a} {signs[0]} {b} = {result}."
    key = f"{a}{kind}{b}" if kind != "*" else prompt
    return sample("arithmetic", prompt, answer, reason, key=key)


def word_problem(rng, thinking):
    name, thing = rng.choice(NAMES), rng.choice(("apple", "book", "coin", "egg", "stamp", "ticket", "pencil",
        "shell"))
    a, b = rng.randint(2, 30), rng.randint(2, 30)
    if rng.random() < 0.5:
        prompt = f"{name} has {a} {thing}s and buys {b} more. How many {thing}s does {name} have now?"
        sum_, result = f"{a} + {b}", a + b
    else:
        a, b = max(a, b), min(a, b)
        prompt = f"{name} has {a} {thing}s and gives away {b}. How many {thing}s are left?"
        sum_, result = f"{a} - {b}", a - b
    return sample("arithmetic", prompt, f"{sum_} = {result}", f"This is {sum_} = {result}." if thinking else None)


# Recall

KINDS = ("code", "number", "colour", "city", "animal", "word", "room", "password", "key", "animal")


def value(rng, kind):
    if kind == "colour":
        return rng.choice("red blue green white black brown pink grey purple orange".split())
    if kind == "city":
        return rng.choice(CITIES)
    if kind == "animal":
        return rng.choice("dog cat fox wolf lion tiger horse goat sheep owl frog whale bear duck".split())
    if kind == "word":
        return rng.choice(NOUNS)
    if kind == "password":
        return rng.choice(NOUNS) + str(rng.randint(10, 99))
    if kind == "key":
        return "".join(rng.choice("ABCDEFGHJKLMNPQRSTUVWXYZ") for _ in range(3)) + str(rng.randint(100, 999))
    return str(rng.randint(1, 99) if kind == "room" else rng.randint(1000, 99999))


def recall(rng, thinking, text, length=None):
    """length: about how many tokens lie between the value and the question."""
    if length is None:
        length = int(10 ** rng.uniform(0.8, 3.0))
    kind = rng.choice(KINDS)
    pairs = {}
    for _ in range(rng.choice((1, 1, 2, 3, 4))):
        pairs[rng.choice(NAMES)] = value(rng, kind)
    owner = rng.choice(list(pairs))
    told = [f"The {kind} of {who} is {what}." for who, what in pairs.items()]
    asked = rng.choice((f"What is the {kind} of {owner}?", f"What was the {kind} of {owner}?",
                        f"Tell me the {kind} of {owner}.", f"Which {kind} belongs to {owner}?"))
    if len(pairs) == 1 and rng.random() < 0.3:
        told = [f"My {kind} is {pairs[owner]}."]
        asked, answer = rng.choice((f"What is my {kind}?", f"What was my {kind}?")), f"Your {kind} is {pairs[owner]}."
    else:
        answer = f"The {kind} of {owner} is {pairs[owner]}."
    lead = rng.choice(("Remember: ", "Please remember this: ", "Note: ", ""))
    head = lead + " ".join(told)
    history, system = [], None
    filler = text(rng, max(0, length - 30)) if length > 30 else ""
    style = rng.random()
    if style < 0.35:
        prompt = head + ("\n\n" + filler if filler else "") + "\n\n" + asked
    elif style < 0.75:
        history = [{"role": "user", "content": head},
                   {"role": "assistant", "content": rng.choice(("I will remember that.", "Noted.", "OK."))}]
        if filler:
            history += [{"role": "user", "content": "Read this text:\n" + filler},
                        {"role": "assistant", "content": rng.choice(("I have read it.", "Done."))}]
        prompt = asked
    else:
        system, prompt = head + ("\n\n" + filler if filler else ""), asked
    reason = f"I was told: {told[list(pairs).index(owner)]}" if thinking else None
    return sample("recall", prompt, answer, reason, system=system, history=history, key=head + asked)


# Lists

def listing(rng, items):
    return rng.choice((", ", ", ", " ")).join(items)


def sort(rng, thinking):
    n = rng.randint(2, 8)
    numbers = rng.random() < 0.7
    down = rng.random() < 0.25
    if numbers:
        items = rng.sample(range(rng.choice((10, 100, 100))), n) if rng.random() < 0.8 else \
            [rng.randint(0, 99) for _ in range(n)]
        ordered = sorted(items, reverse=down)
    else:
        items = rng.sample(NOUNS, min(n, 6))
        ordered = sorted(items, reverse=down)
    items, ordered = [str(x) for x in items], [str(x) for x in ordered]
    shown = listing(rng, items)
    if down:
        prompt = rng.choice((f"Sort in descending order: {shown}", f"Sort these from largest to smallest: {shown}")) \
            if numbers else rng.choice((f"Sort in reverse alphabetical order: {shown}", f"Sort from Z to A: {shown}"))
    elif numbers:
        prompt = rng.choice((f"Sort these numbers: {shown}", f"Sort: {shown}", f"Sort the list {shown}",
                             f"Put these numbers in order: {shown}", f"Sort in ascending order: {shown}",
                             f"Sort {shown}"))
    else:
        prompt = rng.choice((f"Sort these words: {shown}", f"Sort alphabetically: {shown}", f"Sort: {shown}",
                             f"Put these words in alphabetical order: {shown}", f"Sort the list {shown}"))
    reason = f"There are {len(items)} items: {', '.join(items)}. I put them in order." if thinking else None
    return sample("sort", prompt, ", ".join(ordered), reason)


def reverse(rng, thinking):
    n = rng.randint(2, 8)
    items = [str(rng.randint(0, 99)) for _ in range(n)] if rng.random() < 0.5 else rng.sample(NOUNS, n)
    shown = listing(rng, items)
    prompt = rng.choice((f"Reverse this list: {shown}", f"Reverse: {shown}", f"Reverse the list {shown}",
                         f"Write these in reverse order: {shown}", f"Say these backwards: {shown}",
                             f"Reverse {shown}"))
    reason = f"There are {n} items: {', '.join(items)}. I start with the last one." if thinking else None
    return sample("reverse", prompt, ", ".join(items[::-1]), reason)


# Copying

def copy(rng, thinking, text):
    style = rng.random()
    if style < 0.6:
        passage = " ".join(text(rng, rng.choice((8, 15, 30, 45, 60))).split())
    elif style < 0.75:
        passage = " ".join(rng.choice(NOUNS) for _ in range(rng.randint(2, 12)))
    elif style < 0.9:
        letters = "abcdefghijklmnopqrstuvwxyzABCDEFGH0123456789"
        passage = " ".join("".join(rng.choice(letters) for _ in range(rng.randint(2, 7)))
                           for _ in range(rng.randint(1, 5)))
    else:
        passage = "".join(rng.choice("0123456789") for _ in range(rng.randint(3, 16)))
    passage = passage.strip() or "nothing"
    prompt = rng.choice((f"Repeat exactly: {passage}", f"Copy this text exactly: {passage}", f"Say this: {passage}",
                         f"Repeat after me: {passage}", f"Copy this passage exactly:\n{passage}",
                         f"Repeat the following text exactly.\n\n{passage}", f"Write this again: {passage}"))
    return sample("copy", prompt, passage, "I repeat the text exactly." if thinking else None)


# Tools: (name, description, [(parameter, type, description, maker)], [requests])

TOOLS = [
    ("get_weather", "Gets the current weather of a city.", [("city", "string", "The city", "city")],
     ("What is the weather in {city}?", "How is the weather in {city} today?", "Is it raining in {city}?",
      "Tell me the weather in {city}.", "weather in {city}")),
    ("get_time", "Gets the local time of a city.", [("city", "string", "The city", "city")],
     ("What time is it in {city}?", "Tell me the time in {city}.", "What is the local time in {city}?")),
    ("get_forecast", "Gets the weather forecast for some days.",
     [("city", "string", "The city", "city"), ("days", "integer", "How many days", "small")],
     ("What will the weather be in {city} for the next {days} days?",
         "Give me a forecast of {days} days for {city}.")),
    ("send_message", "Sends a message to a person.",
     [("to", "string", "Who gets it", "name"), ("text", "string", "The message", "text")],
     ("Send {to} this message: {text}", "Send a message to {to}: {text}", "Tell {to}: {text}")),
    ("add_event", "Adds an event to the calendar.",
     [("title", "string", "What it is", "noun"), ("hour", "integer", "The hour", "hour")],
     ("Add {title} to my calendar at {hour}.", "Put {title} in the calendar at {hour} o'clock.")),
    ("set_timer", "Starts a timer.", [("minutes", "integer", "Minutes", "number")],
     ("Set a timer for {minutes} minutes.", "Start a timer of {minutes} minutes.", "Wake me in {minutes} minutes.")),
    ("search", "Searches the web.", [("query", "string", "What to search for", "text")],
     ("Search for {query}", "Search the web for {query}", "Look up {query}")),
    ("play_song", "Plays a song.", [("title", "string", "Title of the song", "text")],
     ("Play the song {title}", "Play {title}", "I want to hear {title}")),
    ("translate", "Translates a word.", [("word", "string", "The word", "noun"), ("language", "string",
        "The language", "language")],
     ("Translate {word} into {language}.", "What is {word} in {language}?", "How do you say {word} in {language}?")),
    ("book_train", "Books a train ticket.", [("start", "string", "From", "city"), ("goal", "string", "To", "city")],
     ("Book a train from {start} to {goal}.", "I need a train ticket from {start} to {goal}.")),
    ("convert", "Converts an amount of money.",
     [("amount", "number", "How much", "number"), ("source", "string", "From", "money"), ("target", "string",
         "To", "money")],
     ("Convert {amount} {source} to {target}.", "How much is {amount} {source} in {target}?")),
    ("read_file", "Reads a file.", [("path", "string", "Path of the file", "path")],
     ("Read the file {path}", "Show me {path}", "What is in the file {path}?", "Open {path}")),
    ("delete_file", "Deletes a file.", [("path", "string", "Path of the file", "path")],
     ("Delete the file {path}", "Remove {path}", "Please delete {path}")),
    ("find_user", "Finds a user by name.", [("name", "string", "Name of the user", "name")],
     ("Find the user {name}.", "Look for the user {name}.", "Who is the user {name}?")),
    ("get_price", "Gets the price of an item.", [("item", "string", "The item", "noun")],
     ("What is the price of the {item}?", "How much does the {item} cost?", "Get the price of the {item}.")),
    ("turn_on", "Turns a device on.", [("device", "string", "The device", "noun")],
     ("Turn on the {device}.", "Switch the {device} on.", "Please turn the {device} on.")),
    ("set_light", "Sets the brightness of a room.",
     [("room", "string", "The room", "room"), ("level", "integer", "Brightness", "number")],
     ("Set the light in the {room} to {level}.", "Make the {room} light {level} percent.")),
    ("roll_dice", "Rolls dice.", [("count", "integer", "How many", "small")],
     ("Roll {count} dice.", "Please roll {count} dice.", "Throw {count} dice for me.")),
]
VERBS = "make get find start stop move check list open close paint count lift drop wash build sort mark lock".split()
POOLS = {
    "language": "French German Spanish Italian Dutch Polish Greek Latin Finnish Danish".split(),
    "money": "euros dollars pounds yen francs crowns".split(),
    "room": "kitchen bedroom hall garage office bathroom cellar attic".split(),
    "city": CITIES, "name": NAMES, "noun": NOUNS,
}


def argument(rng, maker, text):
    if maker in POOLS:
        return rng.choice(POOLS[maker])
    if maker == "small":
        return rng.randint(2, 9)
    if maker == "hour":
        return rng.randint(1, 23)
    if maker == "number":
        return rng.randint(1, 200)
    if maker == "path":
        return rng.choice(("/home/", "/tmp/", "", "docs/", "/etc/")) + rng.choice(NOUNS) + rng.choice((".txt",
            ".md", ".c", ".py", ""))
    return " ".join(rng.choice(NOUNS) for _ in range(rng.randint(1, 4))) if rng.random() < 0.6 else \
        (" ".join(text(rng, 10).split()[:8]).strip(" .,;:") or "hello")


def invented(rng):
    name = f"{rng.choice(VERBS)}_{rng.choice(NOUNS)}"
    chosen = rng.sample(("name", "count", "place", "item", "code", "target"), rng.randint(1, 2))
    makers = {"name": "name", "count": "number", "place": "city", "item": "noun", "code": "number", "target": "noun"}
    params = [(p, "integer" if makers[p] == "number" else "string", f"The {p}", makers[p]) for p in chosen]
    request = f"Call {name} with " + " and ".join(f"{p} {{{p}}}" for p in chosen)
    return (name, f"{name.split('_')[0].capitalize()}s the {name.split('_')[1]}.", params, (request, request + "."))


def schema(tool):
    name, description, params, _ = tool
    return {"type": "function", "function": {
        "name": name, "description": description,
        "parameters": {"type": "object",
                       "properties": {p: {"type": t, "description": d} for p, t, d, _ in params},
                       "required": [p for p, *_ in params]}}}


def call_text(name, arguments):
    body = "".join(f"<parameter={k}>\n{v}\n</parameter>\n" for k, v in arguments.items())
    return f"<tool_call>\n<function={name}>\n{body}</function>\n</tool_call>"


def tool(rng, thinking, text):
    offered = rng.sample(TOOLS, rng.choice((1, 1, 2, 2, 3)))
    if rng.random() < 0.35:
        offered[rng.randrange(len(offered))] = invented(rng)
    tools = [schema(t) for t in offered]
    system = rng.choice((None, None, "You are a helpful assistant.", "Use the tools."))
    chance = rng.random()
    if chance < 0.12:
        base = rng.choice((arithmetic, sort, reverse))(rng, thinking)
        return dict(base, tools=tools, skill="tool", key="tool" + base["key"])
    name, _, params, requests = rng.choice(offered)
    arguments = {p: argument(rng, maker, text) for p, _, _, maker in params}
    prompt = rng.choice(requests).format(**arguments)
    reason = f"I call {name} with " + " and ".join(f"{k} {v}" for k,
        v in arguments.items()) + "." if thinking else None
    if chance < 0.27:
        result = rng.choice((f"{rng.randint(-9, 35)} degrees", "done", f"{rng.randint(1, 900)}", rng.choice(NOUNS),
                             "no such file", f"{rng.choice(NAMES)} {rng.randint(10, 99)}"))
        history = [{"role": "user", "content": prompt},
                   {"role": "assistant", "content": "", "reasoning_content": reason or "",
                    "tool_calls": [{"function": {"name": name, "arguments": arguments}}]}]
        out = sample("tool", "", f"The result of {name} is: {result}",
            f"The tool says: {result}" if thinking else None,
                     system=system, tools=tools, key=prompt + result)
        out["messages"] = out["messages"][:-1] + history + [{"role": "tool", "content": result}]
        return out
    return sample("tool", prompt, call_text(name, arguments), reason, system=system, tools=tools)


# Plain English

OPENINGS = ("Once upon a time there was a {adj} {who} named {name}.", "{name} was a {adj} {who}.",
            "In a {place} lived a {adj} {who} whose name was {name}.",
                "Long ago a {adj} {who} named {name} lived in a {place}.")
MIDDLES = ("One day {name} found a {thing} near the {place2}.", "Every morning {name} walked to the {place2}.",
           "{name} wanted to see the {place2}.", "{name} had a {adj2} {thing} and was proud of it.",
           "On a {weather} day {name} met {friend} at the {place2}.", "{friend} asked {name} for a {thing}.",
           "{name} lost a {thing} and looked for it everywhere.")
TURNS = ("But the {thing} was gone.", "Then it began to rain.", "A {animal} came and looked at them.",
         "\"What shall we do?\" said {friend}.", "\"Come with me,\" said {friend}.",
             "{friend} laughed and pointed to the {place2}.",
         "They sat down and ate some bread.", "It was a long way, but {name} did not give up.")
ENDINGS = ("In the end they went home together and were happy.", "From that day on {name} and {friend} were friends.",
           "{name} smiled and went to sleep.", "And {name} never forgot that day.", "So {name} learned to share.",
           "That evening everyone was happy.")
CREATURES = "fox cat dog mouse girl boy king queen rabbit bear owl farmer sailor bird frog horse baker".split()


def story(rng, thinking):
    who = rng.choice(CREATURES)
    places = "forest village garden castle valley town meadow harbour mountain river".split()
    words = dict(who=who, name=rng.choice(NAMES), friend=rng.choice(NAMES), place=rng.choice(places),
                 place2=rng.choice(places),
                     thing=rng.choice("key ring coin map lamp book flower stone hat letter bell".split()),
                 adj=rng.choice("small kind brave clever old young quiet happy poor".split()),
                 adj2=rng.choice("golden red new shiny little wooden".split()), animal=rng.choice(CREATURES),
                 weather=rng.choice("sunny cold windy rainy bright".split()))
    lines = [rng.choice(OPENINGS)] + rng.sample(MIDDLES, rng.randint(1, 3)) + rng.sample(TURNS, rng.randint(1, 3))
    text = " ".join(lines + [rng.choice(ENDINGS)]).format(**words)
    a = "an" if who[0] in "aeiou" else "a"
    prompt = rng.choice((f"Tell me a story about {a} {who}.", f"Write a short story about {a} {who}.",
                         f"Tell me about {a} {who}.", f"Write a story about {a} {who}"))
    if rng.random() < 0.2:
        prompt = rng.choice(("Tell me a story.", "Write a short story.", "Once upon a time", "Tell me a tale"))
    return sample("story", prompt, text, f"I tell a short story about {a} {who}." if thinking else None, key=text)


def chat(rng, thinking):
    kind = rng.random()
    if kind < 0.35:
        prompt, answer = rng.choice(SMALL_TALK)
    elif kind < 0.65:
        prompt, answer = rng.choice(FACTS)
    else:
        country, city = rng.choice(list(CAPITALS.items()))
        prompt = rng.choice((f"What is the capital of {country}?", f"Which city is the capital of {country}?",
                             f"Name the capital of {country}.", f"what is the capital of {country}",
                             f"Tell me the capital of {country}."))
        answer = f"The capital of {country} is {city}."
    if rng.random() < 0.15:
        prompt = prompt.lower() if rng.random() < 0.5 else prompt.rstrip(".?!")
    reason = rng.choice(("I know the answer.", "This is a simple question.")) if thinking else None
    out = sample("chat", prompt, answer, reason, system=rng.choice((None, None, None,
        "You are a helpful assistant.")))
    return dict(out, key="chat")


def package(rng, thinking, packages):
    name, text = rng.choice(packages)
    first, _, rest = text.partition("\n\n")
    prompt = rng.choice((f"What is {name}?", f"What is the package {name}?", f"Tell me about {name}.",
                         f"Describe the Debian package {name}.", f"What does {name} do?"))
    answer = f"{name} is a Debian package: {first}." + ("\n\n" + rest[:900].rsplit(".",
        1)[0] + "." if "." in rest else "")
    return dict(sample("package", prompt, answer, f"This is about {name}." if thinking else None), key="package")


MIX = {"arithmetic": 34, "recall": 12, "sort": 18, "reverse": 8, "copy": 10, "tool": 9, "story": 3, "chat": 4,
    "package": 6}


def draw(rng, skill, text, packages, thinking=None):
    """One sample of the skill, held out or not."""
    if thinking is None:
        thinking = rng.random() < 0.5
    extra = {"recall": (text,), "copy": (text,), "tool": (text,), "package": (packages,)}.get(skill, ())
    return globals()[skill](rng, thinking, *extra)


def training_sample(rng, text, packages):
    """A sample that is not held out, sometimes after an earlier exchange."""
    skills, weights = list(MIX), list(MIX.values())
    while True:
        out = draw(rng, rng.choices(skills, weights)[0], text, packages)
        if held_out(out):
            continue
        roles = [m["role"] for m in out["messages"]]
        if rng.random() < 0.2 and roles[-1] == "user" and out["tools"] is None and roles[0] != "system":
            earlier = draw(rng, rng.choices(skills, weights)[0], text, packages, False)
            if not held_out(earlier) and earlier["tools"] is None and len(earlier["messages"]) == 1:
                before = earlier["messages"] + [{"role": "assistant", "content": earlier["answer"]}]
                out["messages"] = before + out["messages"]
        return out


# Rendering, equal to chat_template.jinja for what is made here (make_tokenizer.py compares them)

def system_block(tools, system):
    if not tools:
        return f"<|im_start|>system\n{system.strip()}<|im_end|>\n" if system is not None else ""
    text = "<|im_start|>system\n# Tools\n\nYou have access to the following functions:\n\n<tools>"
    text += "".join("\n" + json.dumps(t, ensure_ascii=False) for t in tools) + TOOL_TEXT
    return text + ("\n\n" + system.strip() if system and system.strip() else "") + "<|im_end|>\n"


TOOL_TEXT = """
</tools>

If you choose to call a function ONLY reply in the following format with NO suffix:

<tool_call>
<function=example_function_name>
<parameter=example_parameter_1>
value_1
</parameter>
<parameter=example_parameter_2>
This is the value for the second parameter
that can span
multiple lines
</parameter>
</function>
</tool_call>

<IMPORTANT>
Reminder:
- Function calls MUST follow the specified format: an inner <function=...></function> block must be nested within \
<tool_call></tool_call> XML tags
- Required parameters MUST be specified
- You may provide optional reasoning for your function call in natural language BEFORE the function call, but NOT after
- If there is no function call available, answer the question like normal with your current knowledge and do not tell \
the user about function calls
</IMPORTANT>"""


def render_prompt(s):
    messages = s["messages"]
    system = messages[0]["content"] if messages[0]["role"] == "system" else None
    out = system_block(s["tools"], system)
    last = max(i for i, m in enumerate(messages) if m["role"] == "user")
    for i, m in enumerate(messages):
        if m["role"] == "user":
            out += f"<|im_start|>user\n{m['content'].strip()}<|im_end|>\n"
        elif m["role"] == "tool":
            out += f"<|im_start|>user\n<tool_response>\n{m['content'].strip()}\n</tool_response><|im_end|>\n"
        elif m["role"] == "assistant":
            out += "<|im_start|>assistant\n"
            if i > last:
                out += f"<think>\n{m.get('reasoning_content', '').strip()}\n</think>\n\n"
            out += m["content"]
            for call in m.get("tool_calls", ()):
                out += call_text(call["function"]["name"], call["function"]["arguments"])
            out += "<|im_end|>\n"
    out += "<|im_start|>assistant\n<think>\n"
    return out if s["thinking"] is not None else out + "\n</think>\n\n"


def render_answer(s):
    head = f"{s['thinking']}\n</think>\n\n" if s["thinking"] is not None else ""
    return head + s["answer"] + "<|im_end|>"


def right(s, reply):
    """Whether a reply (text after the prompt, special tokens left out) is the right one."""
    if s["thinking"] is not None:
        _, mark, reply = reply.partition("</think>")
        if not mark:
            return False
    reply = reply.strip()
    if s["skill"] == "arithmetic":
        return reply.split("=")[-1].strip() == s["answer"].split("=")[-1].strip()
    return reply == s["answer"].strip()
