"""The question sets of data.prepare: where each comes from and how it is asked. A table, no code.

A set that is a question file already is taken byte for byte. Others are converted row by row.
"""

from __future__ import annotations

from typing import NamedTuple

from evaluation.traces.reading import MT_BENCH_CATEGORIES

GITHUB = "https://raw.githubusercontent.com"
LOGITSPEC = f"{GITHUB}/smart-lty/LogitSpec/659bba9c8c472a92d9c592835fc0fe7c752fd011/data"
RACER = f"{GITHUB}/hkr04/RACER/fc494a3c29a498645f7ef9d4b16e9703338486f6/data"
HARNESS = f"{GITHUB}/Zhuofeng-Li/math-evaluation-harness/1b9885d817962a8494728376625ce6605772edbd"
AIME_PREVIEW = f"{GITHUB}/GAIR-NLP/AIME-Preview/7011a9eae7c4b78071f27b6f77f618d65608cfb0/eval/data"
SPEC_EXTEND = f"{GITHUB}/jycha98/SpecExtend/fbe1b944e3c88b509155ef4fa2e3ffdee0f63d18/specextend"
GSM8K = f"{GITHUB}/openai/grade-school-math/3101c7d5072418e28b9008a6636bde82a006892c"
HUMAN_EVAL = f"{GITHUB}/openai/human-eval/6d43fb980f9fee3c892a914eda09951f772ad10d"
URL_NLP = f"{GITHUB}/google-research/url-nlp/452a21ad3dae5668c06ceeac21ff073e1e40f9be"
LONG_BENCH = (
    "https://huggingface.co/datasets/THUDM/LongBench"
    "/resolve/5e628be450b7e67fb7ae6e201bd6d8f7056f7672"
)

MATH, SUMMARY = "math_reasoning", "summarization"  # categories
BOXED = "\n\nPlease reason step by step, and put your final answer within \\boxed{}."
AIME = "\n\nThe answer is an integer from 0 to 999." + BOXED.replace("\n\n", " ")
BOXED_ZH = "\n\n请逐步推理，并把最终答案放在 \\boxed{} 中。"


class File(NamedTuple):
    """A published file."""

    name: str  # its place in data/, and in the directory of --from
    url: str
    sha256: str
    bytes: int = 0  # 0: not known


class Part(NamedTuple):
    """The questions of one file, or of one member of an archive."""

    file: str  # of FILES
    prompt: str = ""  # with {field}s of a row; empty: the file holds questions as they are asked
    category: str = ""
    member: str = ""


class Key(NamedTuple):
    """The answers of questions whose own file has none."""

    file: str  # of FILES
    fields: tuple[str, ...]  # of a row, for answers.jsonl
    question: str = ""  # the field by which a row is found; empty: rows are in order of questions


class QuestionSet(NamedTuple):
    """What becomes data/NAME/question.jsonl."""

    parts: tuple[Part, ...]
    plain: str = ""  # the prompt of --plain; empty: there is one way to ask
    answer: str = ""  # the field of a row with what an answer is checked against
    reference: str = ""  # the field with a text, or texts, to compare an answer with
    key: Key | None = None
    only: tuple[str, ...] = ()  # categories; empty: all


FILES = {
    name: File(name, url, sha256, size)
    for name, url, sha256, size in (
        ("spec_bench/question.jsonl", f"{LOGITSPEC}/spec_bench/question.jsonl",
         "4b6d33e79484f9841c487ee87d1cf6aa8c6066f61d5d482ff09e5a007fafdf04", 698768),
        ("humaneval/question.jsonl", f"{LOGITSPEC}/humaneval/question.jsonl",
         "e490eadb32999dd67a2935ce012baf8b16851fb7beeb1defce839de2543ea467", 98640),
        ("gsm8k/question.jsonl", f"{LOGITSPEC}/gsm8k/question.jsonl",
         "ce063000b630dbcee686713dae97e149b8aa3dc7f27445490b8fbd468119cfd5", 740394),
        ("cnndm/question.jsonl", f"{LOGITSPEC}/cnndm/question.jsonl",
         "9c1a55ef6ac06d96c7a34873d550096f1cda1f13802bd489e9d92c12b44ee25f", 4042385),
        ("raw/HumanEval.jsonl.gz", f"{HUMAN_EVAL}/data/HumanEval.jsonl.gz",
         "b796127e635a67f93fb35c04f4cb03cf06f38c8072ee7cee8833d7bee06979ef", 44877),
        ("raw/gsm8k_test.jsonl", f"{GSM8K}/grade_school_math/data/test.jsonl",
         "3730d312f6e3440559ace48831e51066acaca737f6eabec99bccb9e4b3c39d14", 749738),
        ("raw/math500.jsonl", f"{HARNESS}/data/math500/test.jsonl",
         "35dc41080a3680858b27fa7e0533d2d547825316fc5dafe5d316f4ccc5a06132", 446564),
        ("raw/aime24.jsonl", f"{HARNESS}/data/aime24/test.jsonl",
         "af2b8bd2aa911b6333ad0df32f3ca05c7ae8ed10f1731f4372c8ae26990bf7ac", 156944),
        ("raw/aime25-I.jsonl", f"{AIME_PREVIEW}/aime/test2025-I.jsonl",
         "fcdf97fe9bf3768e586c4f3b3d34d98a763893847e72234aa41e1ed5c67d977a", 6226),
        ("raw/aime25-II.jsonl", f"{AIME_PREVIEW}/aime/test2025-II.jsonl",
         "69d966f7badd83a681d30efa9b4d587b4c692e4892b6ea5dc57d11d3934bf79a", 9426),
        ("raw/mgsm_zh.jsonl", f"{RACER}/mgsm/question.jsonl",
         "354efee29d37d43f83d9c02c5991a4a1158ed53c19ebed0f1cb32de8d834cfd5", 71895),
        ("raw/mgsm_zh.tsv", f"{URL_NLP}/mgsm/mgsm_zh.tsv",
         "b2fa63151022370a0de1f4211c8c284eae74b0f5a3b003b1d5982c0d4a73f661", 0),
        ("raw/racer_math.jsonl", f"{RACER}/math/question.jsonl",
         "ee7109b170e3b5d2e6742f961055d053ae8821dea53ad87b501860b2d6af7926", 65802),
        ("raw/racer_aime.jsonl", f"{RACER}/aime/question.jsonl",
         "f19b9f640f0f99ced30c0eb62dcf73b896da1ae538d308f2b41175dd8e28c366", 99958),
        ("raw/govreport_2K.jsonl", f"{SPEC_EXTEND}/data/govreport/govreport_2K.jsonl",
         "5a9e7139283b9feeb77e167896eac6679bf7149c97c7c0bc61e70a36448ef4ec", 203910),
        ("raw/govreport_4K.jsonl", f"{SPEC_EXTEND}/data/govreport/govreport_4K.jsonl",
         "5450e62525a90f4d63ff061dee84476104c646a64fa1fbaa6f6353df2e19c7e7", 421685),
        ("raw/govreport_8K.jsonl", f"{SPEC_EXTEND}/data/govreport/govreport_8K.jsonl",
         "1a72b1d3ffa734e699bbd4ff2ac7c094ef6292ebdfc37dc7cf662fc9fd0542a1", 788889),
        ("raw/govreport_16K.jsonl", f"{SPEC_EXTEND}/data/govreport/govreport_16K.jsonl",
         "58e080e4437e208ec9d3285d9043c43c0610867b32edd1a654253d381895b696", 1497668),
        ("raw/longbench.zip", f"{LONG_BENCH}/data.zip",
         "cb45b11a4133c6bc1d6a44b0f8e701335ff1e543195db1103472e575857f7f64", 113932529),
    )
}  # fmt: skip

# The benchmark's own prompts: config/dataset2prompt.json in github.com/THUDM/LongBench
LONG_BENCH_PROMPTS = {
    "gov_report": "You are given a report by a government agency. Write a one-page summary of the "
    "report.\n\nReport:\n{context}\n\nNow, write a one-page summary of the report.\n\nSummary:",
    "qmsum": "You are given a meeting transcript and a query containing a question or instruction. "
    "Answer the query in one or more sentences.\n\nTranscript:\n{context}\n\nNow, answer the query "
    "based on the above meeting transcript in one or more sentences.\n\nQuery: {input}\nAnswer:",
    "multi_news": "You are given several news passages. Write a one-page summary of all news. \n\n"
    "News:\n{context}\n\nNow, write a one-page summary of all the news.\n\nSummary:",
    "lcc": "Please complete the code given below. \n{context}Next line of code:\n",
    "repobench-p": "Please complete the code given below. \n{context}{input}Next line of code:\n",
}

SETS: dict[str, QuestionSet] = {
    "spec_bench": QuestionSet((Part("spec_bench/question.jsonl"),)),
    "mt_bench": QuestionSet((Part("spec_bench/question.jsonl"),), only=MT_BENCH_CATEGORIES),
    "humaneval": QuestionSet(
        (Part("humaneval/question.jsonl"),),
        key=Key("raw/HumanEval.jsonl.gz", ("prompt", "entry_point", "test")),
    ),
    "gsm8k": QuestionSet(
        (Part("gsm8k/question.jsonl"),), key=Key("raw/gsm8k_test.jsonl", ("answer",), "question")
    ),
    "cnndm": QuestionSet((Part("cnndm/question.jsonl"),)),
    "math500": QuestionSet(
        (Part("raw/math500.jsonl", "{problem}" + BOXED, MATH),), plain="{problem}", answer="answer"
    ),
    "aime24": QuestionSet(
        (Part("raw/aime24.jsonl", "{problem}" + AIME, MATH),), plain="{problem}", answer="answer"
    ),
    "aime25": QuestionSet(
        (
            Part("raw/aime25-I.jsonl", "{problem}" + AIME, MATH),
            Part("raw/aime25-II.jsonl", "{problem}" + AIME, MATH),
        ),
        plain="{problem}",
        answer="answer",
    ),
    "mgsm_zh": QuestionSet(
        (Part("raw/mgsm_zh.jsonl", "{turns}" + BOXED_ZH, MATH),),
        plain="{turns}",
        key=Key("raw/mgsm_zh.tsv", ("answer",), "question"),
    ),
    "racer_math": QuestionSet((Part("raw/racer_math.jsonl"),)),
    "racer_aime": QuestionSet((Part("raw/racer_aime.jsonl"),)),
    "govreport_2k": QuestionSet(
        (Part("raw/govreport_2K.jsonl", "{text}", SUMMARY),), reference="answer"
    ),
    "govreport_4k": QuestionSet(
        (Part("raw/govreport_4K.jsonl", "{text}", SUMMARY),), reference="answer"
    ),
    "govreport_8k": QuestionSet(
        (Part("raw/govreport_8K.jsonl", "{text}", SUMMARY),), reference="answer"
    ),
    "govreport_16k": QuestionSet(
        (Part("raw/govreport_16K.jsonl", "{text}", SUMMARY),), reference="answer"
    ),
    "longbench": QuestionSet(
        tuple(
            Part("raw/longbench.zip", prompt, task, f"data/{task}.jsonl")
            for task, prompt in LONG_BENCH_PROMPTS.items()
        ),
        reference="answers",
    ),
}
