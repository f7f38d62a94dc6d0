"""Words, names and facts that tasks.py builds its prompts from."""

NOUNS = """apple bread cloud dog egg fish garden house island jacket kite lamp mountain needle orange paper \
queen river
stone table umbrella village window yard zebra bird book bottle bridge car cat chair clock coat cup desk door dream
drum field fire flower forest fork fox gate glass gold hand hat hill horse ice ink key king ladder lake leaf letter
lion map milk moon mouse nest night ocean owl pen pencil piano plate pond rain ring road rock roof room rope salt
sand school sea seed ship shoe silver sky snow song spoon star storm street sugar sun tea tent tiger tower town train
tree truck wall water wind wolf wood wool yellow acorn anchor arrow basket beach bell boat box branch brick broom
bucket button candle carpet castle cheese cherry coin comb copper corn cotton cow crab crown deer duck eagle engine
feather fence flag flute frog goat goose grape grass hammer harp honey hook jar jewel kettle kitchen knife lemon
lettuce lock maple market meadow melon mirror nail nut oak oil onion oven parrot path peach pear pepper pillow pine
pipe plum pocket pool potato rabbit radio ribbon rice robin rose saddle sail sheep shelf shirt silk soap sock soup
spider squirrel stamp swan sword thread ticket tomato turtle valley vase violin wagon whale wheel""".split()

NAMES = """Alice Bob Carol David Emma Frank Grace Henry Iris Jack Kate Leo Mary Nina Oscar Paul Rosa Sam Tina Victor
Wendy Adam Bella Chris Diana Eric Fiona George Hannah Ivan Julia Kevin Laura Mark Nora Oliver Peter Ruth Simon Tom
Anna Ben Clara Daniel Eva Felix Helen Jane Karl Lucy Max Olga Rita Sara Tim Vera Will Zoe""".split()

CITIES = """Paris London Berlin Madrid Rome Vienna Prague Oslo Stockholm Helsinki Lisbon Dublin Athens Warsaw Budapest
Tokyo Delhi Cairo Lima Ottawa Sydney Boston Chicago Seattle Denver Toronto Munich Hamburg Milan Naples Porto Geneva
Zurich Brussels Bergen Riga Vilnius Sofia Nairobi Dakar Quito Havana Hanoi Seoul Osaka Kyoto Mumbai Austin""".split()

CAPITALS = dict(line.split(":") for line in """France:Paris
Germany:Berlin
Spain:Madrid
Italy:Rome
Austria:Vienna
Norway:Oslo
Sweden:Stockholm
Finland:Helsinki
Portugal:Lisbon
Ireland:Dublin
Greece:Athens
Poland:Warsaw
Hungary:Budapest
Japan:Tokyo
Egypt:Cairo
Peru:Lima
Canada:Ottawa
Belgium:Brussels
Denmark:Copenhagen
Latvia:Riga
Bulgaria:Sofia
Kenya:Nairobi
Cuba:Havana
Vietnam:Hanoi
Australia:Canberra
Switzerland:Bern
the Netherlands:Amsterdam
Iceland:Reykjavik
Estonia:Tallinn
Romania:Bucharest""".split("\n"))

FACTS = [line.split("|") for line in """What colour is the sky?|The sky is blue on a clear day.
What colour is grass?|Grass is green.
How many days are in a week?|A week has seven days.
How many months are in a year?|A year has twelve months.
How many hours are in a day?|A day has 24 hours.
How many minutes are in an hour?|An hour has 60 minutes.
At what temperature does water boil?|Water boils at 100 degrees Celsius at sea level.
At what temperature does water freeze?|Water freezes at 0 degrees Celsius.
How many legs does a spider have?|A spider has eight legs.
How many legs does a dog have?|A dog has four legs.
What do bees make?|Bees make honey.
What do cows drink?|Cows drink water.
What is the largest planet?|The largest planet of our solar system is Jupiter.
Which planet do we live on?|We live on the planet Earth.
What is the opposite of hot?|The opposite of hot is cold.
What is the opposite of big?|The opposite of big is small.
What is the opposite of up?|The opposite of up is down.
What is the opposite of day?|The opposite of day is night.
What comes after Monday?|Tuesday comes after Monday.
What comes after Friday?|Saturday comes after Friday.
What is Debian?|Debian is a free operating system made by volunteers from all over the world.
What is Linux?|Linux is the kernel of a free operating system.
What is a kernel?|A kernel is the part of an operating system that talks to the hardware and shares it among \
the programs.
What is a computer?|A computer is a machine that follows instructions to work on data.
What is a compiler?|A compiler is a program that turns source code into code that a machine can run.
What is a file?|A file is a piece of data with a name, kept on a disk.
What is memory?|Memory is the part of a computer that holds data while programs work on it.""".split("\n")]

SMALL_TALK = [line.split("|") for line in """Hello!|Hello! How can I help you today?
Hi|Hello! How can I help you today?
Hi there!|Hello! What can I do for you?
Hello|Hello! How can I help you today?
Hello, how are you?|I am well, thank you. How can I help you?
How are you?|I am well, thank you. How can I help you?
Good morning!|Good morning! What can I do for you?
Good evening.|Good evening! What can I do for you?
Thank you!|You are welcome.
Thanks|You are welcome.
Thanks a lot.|You are welcome. Is there anything else?
Bye!|Goodbye!
Goodbye|Goodbye!
Who are you?|I am a very small language model that comes with shardd. I can do short sums, sort lists, copy \
text and call tools.
What are you?|I am a very small language model that comes with shardd. I am here for demonstrations and tests.
What is your name?|I am the small model that comes with shardd. I have no other name.
What can you do?|I can do short sums, recall what you told me, sort or reverse short lists, copy text exactly \
and call tools. I am very small, so please do not trust me with more.
Can you help me?|Yes. I can do short sums, sort short lists, copy text and call tools.
Are you a large model?|No, I am a very small model with about eight million parameters.
What is shardd?|shardd is a program that serves language models over gRPC, from one or many processes.
Do you like music?|I am a small model and cannot hear music, but many people like it.
Tell me something.|Water boils at 100 degrees Celsius at sea level.
Tell me a joke.|Why did the computer go to the doctor? It had a virus.""".split("\n")]
