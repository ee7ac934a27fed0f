"""What the cache's guard knows of words: of English much, of a few other languages a little.

This is general vocabulary of questions. A word that isn't here counts as one that matters, so what is missing costs a
hit; only what is wrong here could give the answer to another question.
"""

KINDS: dict[str, str] = {
    "who": "who whom whose",
    "when": "when",
    "where": "where",
    "why": "why",
    "how": "how",
    "what": "what which",
}
"""Words that say what kind of answer is asked for."""

NOUNS_OF_KIND: dict[str, str] = {
    "when": "time date deadline",
    "where": "location whereabouts",
    "why": "cause causes caused reason reasons makes making explains",
    "how": "way ways method methods approach steps procedure process tips technique trick tricks guide command "
    "instructions",
}
"""Nouns and verbs that make a question with `what` or `which`, or without such a word, one of another kind."""

PHRASES: tuple[tuple[str, str], ...] = (
    # Frames that only say that something is asked.
    (
        r"(?:can|could|would|will) (?:you|anyone|somebody|someone)(?: please)?(?= tell| give| show| explain| describe"
        r"| help| list| find| say| let| summari[sz]e| remind| name| define| recommend| suggest| translate| convert)",
        "",
    ),
    (r"(?:do|would) you(?: happen to)? know(?= how| what| which| why| when| where| who)", ""),
    (
        r"(?:(?:do|would) you(?: happen to)? know|tell me|i wonder|check) (?:if|whether)|is it (?:true|correct) that",
        "is",
    ),
    (r"^(?:please )?(?:(?:give|show) (?:me|us) )?(?:a |the )?list(?: of|(?= [a-z]+))|^name(?= [a-z]+)", "what"),
    (r"(?:please )?(?:tell|give|show|remind|let|help)(?: me| us)(?: know)?(?: about)?", ""),
    (
        r"^i (?:want|need|would like|am trying|wish|have|like) to (.+?)[ ,.;?!]*"
        r"how(?: (?:do|can|should) i(?: do (?:that|it|this))?)?$",
        r"how \1",
    ),
    (r"^i (?:want|need|would like|am trying|wish|have|like) to(?: know)?", "how"),
    (r"(?:explain|describe)(?= how| what| why| when| where| who)", ""),
    (r"(?:explain|describe|define)", "what"),
    (r"(?:in )?(?:what|which) way", "how"),
    (
        r"what (?:should|can|could|must|do|shall) (?:i|we|you|one)(?: have to)? do(?: about| with| against| for| to)?",
        "how",
    ),
    (r"what does it take", "how"),
    (r"^(?:is|are|was|were) there(?: any| an?)?", "there"),
    (r"(?:what|which) (?:type|kind|sort|types|kinds|sorts) of", "what"),
    (
        r"(?:what|which) (?:person|artist|author|writer|painter|scientist|inventor|director|composer|singer|actor)",
        "who",
    ),
    (r"(?:is|are) there (?:a|any) (?:way|possibility) to", "how"),
    (r"(?:quickest|fastest) (?:way|method)", "way fast"),
    (r"(?:easiest|simplest) (?:way|method)", "way easy"),
    (r"cheapest (?:way|method)", "way cheap"),
    (
        r"(?:good|best|right|correct|proper|recommended|usual|some)"
        r"(?= (?:way|method|approach|procedure|steps|technique))",
        "",
    ),
    (r"(?:is|are) it (?:possible|ok|okay|alright|all right|fine|safe|allowed|permitted) (?:for|to|if|that)", "can"),
    (r"(?:is|are|am) (.{1,40}?) (?:ok|okay|fine|safe|allowed|permitted|able) to", r"can \1"),
    (r"^(?:is|are) (.{1,60}?) (?:allowed|permitted|possible)", r"can \1"),
    (r"^(?:is|are) (.{1,60}?) (?:required|necessary|needed|mandatory|obligatory|compulsory)", r"must \1"),
    (r"^(do|does) (i|we|you|they|one) need", r"must \2"),
    (r"(?:have|has) (.+?) got", r"do \1 have"),
    (r"^(do|does) (.{1,40}?) (?:have|need) to", r"must \2"),
    (r"(how|when|where|why|long|often|soon|early) do (i|we|you|one) (?:need|have) to", r"\1 do \2"),
    (r"(?:is|are|am) (?:going|about) to", "will"),
    (r"(?:is|are|am) (\w+(?: \w+)?) (?:going|about) to", r"will \1"),
    (r"(?:need|needs|have|has) to be", "should be"),
    (r"what (?:does|do) (.{1,60}?) do", r"what purpose \1"),
    (r"what (?:is|was) (.{1,60}?) birthplace|what (?:is|was) the birthplace of (.+)", r"where \1\2 born"),
    (r"what (?:is|was) (.{1,60}?) (?:birthday|date of birth)", r"when \1 born"),
    (r"what is the (pronunciation|spelling|translation) of", r"how \1"),
    (r"(?:inside|in) (?:the|my|your|a) (?:house|home)|at home", "indoors"),
    (r"electric (?:cars?|vehicles?)", "ev"),
    (r"money back", "refund"),
    (r"due date", "deadline"),
    (r"high blood pressure", "hypertension"),
    (r"regular expression", "regex"),
    (r"laid off", "dismissed"),
    (r"convert (#\S+ .+?) (?:to|into) (.+)", r"many \2 is \1"),
    (r"are you", "are yourself"),
    (r"(?<=do )people", "one"),
    (r"^is (.{1,60}?) (?:safe|ok|okay)(?= (?:for|during|while|in|with|to)|$)", r"can \1"),
    (r"keep (.{1,40}?) from(?= \w+ing)", r"stop \1 from"),
    (r"get (.{1,40}?) (?:out|off)$", r"remove \1"),
    (r"(?:get|have|make) less", "reduce"),
    (r"(?:get|have) more", "increase"),
    # Measures: an adjective after "how" is a noun.
    (r"how old (?:do|must|should|does) (.{1,20}?)(?: have| need)?(?: to)? be", r"what minimum age \1"),
    (r"how (?:tall|high)", "what height"),
    (r"how far", "what distance"),
    (r"how old", "what age"),
    (r"how (?:big|large)", "what size"),
    (r"how fast", "what speed"),
    (r"how heavy", "what weight"),
    (r"how deep", "what depth"),
    (r"how wide", "what width"),
    (r"how long", "what duration"),
    (r"how (?:often|frequently|many times)", "what frequency"),
    (r"how soon", "when"),
    (r"how come", "why"),
    (r"how many (?:people|inhabitants|residents) (?:live|are there|are living)", "what population"),
    (r"how many (?:inhabitants|residents)", "what population"),
    (r"how much (?:money )?(?:does|do|did|will|would) (.+?) cost", r"what cost \1"),
    (
        r"how (?:much|expensive|big|high|large|low)(?= (?:is|are|was|were) .*\b"
        r"(?:wage|salary|pay|price|cost|fee|fine|fare|rent|rate|tax|penalty|gdp|debt|budget|risk|population|temperature|income|revenue|inflation))",
        "what",
    ),
    (r"how much (?:is|are|was|were)(?!.*#)", "what cost"),
    (r"how much (?:is|are|was|were)", "what"),
    (r"how expensive (?:is|are|was|were)", "what cost"),
    (
        r"how much(?: money)? (?:do|would|will|must|should) (?:i|we|you|one) "
        r"(?:have to pay|need to pay|pay|need|have to spend) for",
        "what cost",
    ),
    (r"how much time", "what duration"),
    (r"(flight|travel|journey|cooking|baking|processing|waiting|delivery|driving) time", r"\1 duration"),
    (r"how much (?:does|do) (.+?) (?:earn|make)", r"what salary \1"),
    (r"how much (?:does|do) (.+?) weigh", r"what weight \1"),
    (r"how (?:much|many)|(?:what|which) (?:is |are )?(?:the )?number of|what number of|^number of", "many"),
    (r"what (?:is|was) the name of the(?= \w{3,}(?:or|er)\b)", "who"),
    (r"(?:what|how) (?:is|are|was|were) (.+?) like", r"how \1"),
    (r"what (?:is|are|does|do) (.+?)(?: used)? for$", r"what purpose \1"),
    (r"(?:in|at|on|by|until|from)(?= (?:what|which) (?:time|date|day|year|month|hour))", ""),
    (r"(?:what|which) time", "when clocktime"),
    (r"(?:what|which) (?:date|day)", "when calendarday"),
    (r"(?:what|which) (year|month|hour|week|century|decade)", r"when calendar\1"),
    (r"by when", "when"),
    # Verbs of two words, and other names of one thing.
    (r"get rid of", "remove"),
    (r"get (.{1,40}?) (?:out of|off)", r"remove \1 from"),
    (r"out of", "from"),
    (r"in charge of", "responsible"),
    (r"right now|at the moment|at present|these days", ""),
    (r"movie theat(?:er|re)", "cinema"),
    (r"capital city", "capital"),
    (r"what is involved in", "how"),
    (r"where (?:do|does|did) (.+?) (?:come from|originate)", r"what origin \1"),
    (r"translate (?!.* from )(.+?) (?:in)?to", r"how \1"),
    (r"(?:turn|switch)(?:ed|ing)? on", "enable"),
    (r"(?:turn|switch|shut)(?:ed|ing)? off", "disable"),
    (r"(?:turn|switch) (.{1,30}?) on(?! (?:a|an|the|my|this)\b)", r"enable \1"),
    (r"(?:turn|switch) (.{1,30}?) off", r"disable \1"),
    (r"set(?:ting)? up", "configure"),
    (r"(?:back|backing) up", "backup"),
    (r"(?:log|sign)(?:ging|ing)? in", "login"),
    (r"(?:log|sign)(?:ging|ing)? out", "logout"),
    (r"sign(?:ing)? up", "register"),
    (r"speed(?:ing)? up", "accelerate"),
    (r"(?:make|get) (.{1,40}?) faster", r"accelerate \1"),
    (r"(?:look(?:ing)? up|find(?:ing)? out)", "find"),
    (r"c(?:ame|ome) up with", "invent"),
    (r"c(?:ome|omes|ame) from", "originate"),
    (r"end(?:s|ed)? up", "end"),
    (r"(?:carry|carried|carrying) out", "perform"),
    (r"fill(?:ing)? (?:in|out)", "complete"),
    (r"(?:pick|picking) up", "collect"),
    (r"(?:cut|cutting) down", "reduce"),
    (r"(?:give|giving) up", "quit"),
    (r"throw(?:ing)? away", "discard"),
    (r"#2 world war|world war #2", "#2 ww"),
    (r"#1 world war|world war #1", "#1 ww"),
    (r"#2 -?(?:factor|step) (?:authentication|verification)", "#2 fa"),
    (r"per cent", "percent"),
    (r"share a border with", "border"),
    (r"in the (?:whole |entire )?world|on (?:the )?(?:earth|planet)|of the world", "worldwide"),
    (r"vs\.?|versus", "difference"),
    (r"wi-fi", "wifi"),
    (r"e-mails?", "email"),
)
"""Expressions of several words and what they are read as, applied in this order to English in lower case."""

POLAR = "is are am was were do does did has have had can could may might will would shall should must ought"
"""Auxiliaries, which make a question for yes or no where they come first."""

PERSONS: dict[str, str] = {"first": "my mine myself am", "second": "your yours yourself"}
"""Whose something is. A bare "you" is anybody, and what is ours may be yours."""

MODALITY: dict[str, str] = {"can": "can could may might", "should": "should ought", "must": "must"}
TENSES: dict[str, str] = {"past": "was were did had", "present": "is are am do does has have", "future": "will shall"}

ARTICLES = "a an the"

DIRECTIONS = "from to into onto than by about over under against before after minus"
"""Prepositions that tell the two sides of a relation apart."""

EMPTY = """
    a an the this that these those there here it its i me my mine myself we us our ours you your yours yourself
    one ones oneself is are am was were be been being do does did done doing has have had having will would can
    could shall should may might must ought of in on at by to for from with as into onto about via among between
    and or so then than if whether what which who whom whose how when where why please kindly hi hello hey
    thanks want wants wanted like wish know say tell show explain describe help let lets actually just really
    exactly generally usually normally typically also too very get gets getting got obtain obtaining receive
    during while go goes going make makes making made become becomes becoming use uses using used take takes
    taking some any certain thing things something anything exist exists existing contain contains contained
    located means mean meaning meant definition called considered possible able many much lot lots worldwide
    someone
"""
"""English words that add nothing to what is asked, beyond the kind of question that some of them make."""

LIGHT = """
    person people place thing example instance fact idea ideas process processing procedure provide involve
    apply perform look see seen try keep put bring happen occur come own entire exact exactly actual specific
    proper properly clocktime calendarday calendaryear calendarmonth calendarhour calendarweek calendarcentury
    calendardecade currently just simply available find obtain good best
"""
"""English words so general that a question can have one more than another and still ask for the same.

Only where the other question has no word of its own that lacks a counterpart.
"""

SAME = """
    buy purchase | begin start commence | end finish | stop quit cease | fix repair mend | remove delete erase |
    largest biggest | larger bigger | small little | smallest littlest | fast quick quickly rapid rapidly |
    fastest quickest fast quick | cheapest cheap | easiest simplest easy simple | additional extra more further |
    correct right proper | invent inventor | sing singer | design designer | produce producer | discover discoverer |
    stop prevent avoid | after once | faster quicker | cheap inexpensive cheaply | cheapest cheaply |
    hard difficult tough | easy easily simple simply | reduce lower decrease lessen cut |
    increase raise boost improve | improve enhance | find locate search discover | find see | own owner | fly flight |
    see view look check | check verify test | display show | choose pick select | enable activate |
    disable deactivate | configure setup install | join combine merge | split divide | send transfer | send ship |
    obtain receive | change modify edit alter | change switch | swap exchange | convert change transform |
    copy duplicate | kill terminate | resign quit resignation | cancel terminate | protect guard | prepare train |
    create build generate | build construct | compose write | invent develop discover |
    write author writer wrote written | paint painter painted | direct director | found founder establish |
    run manage lead head | ceo chief | refund reimburse return | cost price fee | salary earn wage pay income |
    pay payment paid | money cash | tax taxable | bill invoice | buyer customer client |
    support service help helpdesk | car automobile vehicle | phone mobile smartphone | phone telephone call |
    contact reach call | laptop notebook | computer pc | photo picture image photograph pic | tv television |
    fridge refrigerator | tap faucet | leak drip | bike bicycle | plane airplane aeroplane aircraft | pan skillet |
    autumn fall | holiday vacation leave | flat apartment | flatmate roommate | house home | shop store |
    pharmacy drugstore chemist | petrol gasoline | lorry truck | lift elevator | rubbish garbage trash |
    biscuit cookie | soccer football | colour color | flavour flavor | favourite favorite | centre center central |
    tyre tire | grey gray | licence license | programme program | theatre theater | metre meter m |
    kilometre kilometer km | centimetre centimeter cm | millimetre millimeter mm | gram gramme g | kilogram kilo kg |
    milligram mg | pound lb | ounce oz | litre liter l | millilitre milliliter ml | hour hr | minute min |
    minimum min | maximum max | dollar usd $ | euro eur € | pound gbp £ | yen jpy ¥ | percent % |
    celsius centigrade °c | fahrenheit °f | gigabyte gb | megabyte mb | kilobyte kb | terabyte tb |
    doctor physician dr | illness disease sickness | medicine medication drug | pregnant pregnancy | baby infant |
    child kid children kids | teenager teen adolescent | seasick seasickness | symptom sign | cure remedy treatment |
    treat treatment | harm damage hurt bad | job position post | boss manager supervisor | company firm business |
    employee worker staff | meeting appointment | student pupil | teacher instructor | essay paper | document paper |
    road street st | avenue ave | mountain mount mt | trip travel journey visit | delivery shipping | parcel package |
    arrive arrival come | depart departure leave | country nation | near close nearby | nearest closest |
    inside indoor indoors | outside outdoor outdoors | weather climate | population inhabitant resident |
    birthplace born | height tall high elevation | distance far | age old | size big large | speed fast velocity |
    weight weigh heavy | depth deep | width wide | duration length long | frequency often | death die died dead |
    birth born | rich wealthy | grow cultivate | smell odor odour | important significant essential |
    interesting fascinating | useful helpful | cause reason | cause make | main primary chief principal |
    common frequent commonly | average mean typical | total overall | difference differ distinction |
    compare comparison | difference compare between | advantage benefit pro | disadvantage drawback con downside |
    rule regulation | policy rule | law legislation | punishment penalty fine | consequence happen result |
    effect impact | happen occur | allow permit | forbid prohibit | legal lawful | safe secure | error mistake |
    bug defect | broken defective faulty | app application program software | website site webpage |
    web internet online | folder directory | dictionary dict | database db | repository repo | message text |
    notification alert | mac macos osx | wifi wireless | wireless wirelessly | process task |
    accelerate speed fast faster | purpose function use | summary summarise summarize | organise organize |
    optimise optimize | parallelise parallelize | all every each | everyone everybody all | whole entire |
    only solely | approximately roughly around | before prior | under below beneath | above over | king monarch |
    uk britain | usa america us_ | worldwide global | good great best | nice pleasant | happy glad | angry furious |
    tired exhausted | funny humorous | pronounce pronunciation | recommend suggest advise | propose suggest |
    answer reply respond response | ask inquire | register enrol enroll join | speak talk | learn study |
    teach instruct train |
    move relocate | live reside | walk stroll | run jog | eat consume | drink beverage | choose choice |
    decide decision | lose loss lost | replace replacement | renew renewal | install installation |
    discover discovery | grow growth | deliver delivery | produce production | destroy destruction |
    describe description | explain explanation | permit permission | defend defence defense | advise advice |
    safe safety | able ability | strong strength | true truth | hot heat | poor poverty | free freedom | bake baked |
    sell sale sold | buy bought | think thought | teach taught | catch caught | bring brought | eat ate eaten |
    drink drank drunk | go went gone | see saw seen | take took taken | give gave given | speak spoke spoken |
    break broke broken | choose chose chosen | drive drove driven | fall fell fallen | fly flew flown |
    grow grew grown | know knew known | make made | build built | leave left departed | send sent | win won |
    find found | get got | begin began begun | sing sang sung | rise rose risen | sink sank sunk |
    steal stole stolen | wear wore worn | tell told | keep kept | hold held | feel felt | meet met | lead led |
    run ran | come came | become became | europe european | france french | india indian | germany german |
    italy italian | spain spanish | japan japanese | china chinese | russia russian | canada canadian |
    america american | mexico mexican | brazil brazilian | australia australian | poland polish | sweden swedish |
    norway norwegian | denmark danish | netherlands dutch | portugal portuguese | greece greek | turkey turkish |
    egypt egyptian | rome roman | africa african | asia asian | ireland irish | scotland scottish | wales welsh |
    england english | access accessible | person people human | need require requirement necessary must |
    track trace | item product article goods | shipping postage | discount voucher coupon | close shut |
    lawyer attorney solicitor | affordable cheap | launch start | run execute | string str | integer int |
    variable var | javascript js | typescript ts | kubernetes k8s | postgres postgresql |
    config configuration configure settings | environment env | authentication auth | documentation docs manual |
    information info details | temperature temp | noon midday | dad father | mom mum mother | grandma grandmother |
    grandpa grandfather | husband spouse | wife spouse | insect bug | rabbit bunny | stomach belly tummy abdomen |
    tooth teeth | foot feet | mouse mice | man men | woman women | leaf leaves | knife knives | life lives |
    ill sick unwell | pain ache sore painful hurt | vaccine vaccination shot jab | flu influenza | taxi cab |
    subway metro underground | luggage baggage | reservation booking reserve book | eggplant aubergine |
    zucchini courgette | cilantro coriander | shrimp prawn | fries chips | garden yard | mould mold | sweater jumper |
    sneakers trainers | stove cooker hob | couch sofa | wardrobe closet | lawn grass | victory win | defeat beat |
    poem poetry | biggest greatest | tallest highest | cv resume | hire recruit | fired dismissed |
    pension retirement | share stock | invest investment | sun solar | moon lunar | sea ocean | newest latest |
    quiet silent | dangerous hazardous unsafe | poisonous toxic | wash clean | stain spot mark | unclog unblock |
    clogged blocked | move movement | manage management | measure measurement | argue argument | agree agreement |
    retire retirement | govern government | employ employment | assign assignment | recover recovery | injure injury |
    modify modification | apply application | translate translation | spell spelling | educate education |
    communicate communication | calculate calculation compute computation | operate operation |
    transport transportation | inform information | register registration | confirm confirmation |
    cancel cancellation | validate validation | verify verification | migrate migration | invite invitation |
    donate donation | compose composition | protect protection | inject injection | infect infection |
    connect connection | collect collection | select selection | correct correction | elect election |
    subscribe subscription | prescribe prescription | analysis analyse analyze | crisis crises | prove proof |
    believe belief | die deadly fatal lethal | sell seller vendor | rent lease | tourist visitor | client patron |
    aged old | purpose goal aim | role function purpose | benefit advantage profit | skill ability |
    chance probability likelihood odds | limit maximum cap | restriction limit | amount quantity sum |
    portion serving | remain stay | rest remainder | amazing wonderful | awful terrible horrible | stupid dumb |
    smart clever intelligent | wrong incorrect false | real genuine authentic | fake counterfeit | empty vacant |
    entire complete full | famous renowned known | modern contemporary | ancient old | brief short |
    huge enormous giant | thin slim | loud noisy noise | wet damp moist | strange odd weird |
    scared afraid frightened | sleepy tired | lazy idle | hang stuck unresponsive | crash fail | reboot restart |
    slow sluggish | send submit | submit file | file lodge | notify inform alert | shrink reduce | trim cut |
    store save keep | keep retain | preserve keep | protect secure | hide conceal | gather collect | throw toss |
    lift raise | mix blend stir combine | chop cut dice | fry saute | roast bake | heat warm | cool chill |
    defrost thaw | peel skin | weigh mass weight | leader head chief | staff personnel crew | folks people |
    customers clients | colleague coworker | buddy friend | foe enemy | carpet rug | relieve ease soothe alleviate |
    wedding marry married marriage | update change edit | origin originate source | recognise recognize identify |
    request ask | expensive costly dear | adult grownup | similar alike | enough sufficient | abroad overseas |
    whole complete | current present | previous former | finish complete | continue resume | refuse decline reject |
    fail failure | succeed success | try attempt | practise practice | offer provide | publish release | report tell |
    discuss talk | immediately instantly now | rarely seldom | pavement sidewalk | motorway highway freeway |
    timetable schedule | delay late delayed | baggage luggage suitcase | toilet restroom bathroom loo |
    university college | class course lesson | exam examination test | prison jail | police cops |
    theft steal stealing | browser explorer | url link | extract unpack unzip | compress zip | exception error |
    admin administrator | virus malware | energy power | song track | actor actress | athlete player |
    champion winner | trip tour | gift present | christmas xmas | singer vocalist | diet nutrition | dose dosage |
    pill tablet | injury wound | workout exercise training | dessert pudding | tip gratuity | waiter server |
    flower bloom blossom | fertiliser fertilizer | beach coast shore seaside | snow snowfall | rain rainfall |
    draw drew drawn | show shown | hear heard | say said | pay paid | lay laid | stand stood | lend lent |
    spend spent | sleep slept | swim swam swum | throw threw thrown | blow blew blown | forget forgot forgotten |
    hide hid hidden | bite bit bitten | ride rode ridden | shake shook shaken | wake woke woken |
    freeze froze frozen | swear swore sworn | tear tore torn | dig dug | hang hung | shoot shot | bleed bled |
    feed fed | breed bred | bend bent | burn burnt | dream dreamt | learn learnt | spell spelt | shine shone |
    strike struck | stick stuck | sweep swept | swing swung | understand understood | fight fought | seek sought |
    bind bound | grind ground
"""
"""Groups of English words that ask for the same, between bars; a word may be in several."""

OTHER_EMPTY: dict[str, str] = {
    "german": "kann kannst können was welche welcher welches welchen der die das den dem des ein eine einen einem "
    "einer ich mir mich mein meine meinen wir uns du dir sie ihr ist sind war waren hat haben habe wird "
    "werden bitte in im am an auf zu zum zur von vom für es man",
    "spanish": "qué cuál cuáles puede el la los las un una unos unas de del al en mi mis me se su sus yo es son está "
    "están ha han por favor puedo",
    "french": "quel quelle quels quelles que qu puis peut fait le la les un une des de du d l au aux en à je j me "
    "mon ma mes on nous vous il elle ce c est sont a ont s'il plaît",
    "italian": "qual quale quali che cosa posso il lo la i gli le un una uno di del della dei a al alla in mi mio "
    "mia ci si è sono ha hanno per favore",
    "portuguese": "qual quais que o a os as um uma de do da dos das em no na eu me meu minha se é são está por favor "
    "posso",
    "dutch": "wat welke kan de het een van in op aan te ik mij mijn me je u we ons is zijn was heeft hebben wordt "
    "worden",
    "russian": "какой какая какое какие что можно я мне меня мой моя мы нам в во на у и это есть пожалуйста",
    "polish": "jaki jaka jakie co mogę w we na do z ja mi mnie mój moja my się jest są to proszę",
    "japanese": "は の を が に も で す か ま て く だ さ い",
    "chinese": "怎 么 如 何 的 了 吗 呢 请 我 你",
}
"""Articles, pronouns, auxiliaries and mere joints of languages whose questions can then differ by those, too."""
