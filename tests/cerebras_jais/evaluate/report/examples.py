"""Folders as lm_eval 0.4.13 writes them, made by hand; `test_results` holds the form to lm_eval itself."""

import hashlib
import json
import math

STAMP = "2026-01-02T03-04-05.678901"
ARABIC = {
    "prompt": "This is a Social Science question for high school. Select the correct answer!\n\nQuestion: ما هي عاصمة "
    "الإمارات العربية المتحدة؟\nA. أبوظبي\nB. دبي (Dubai)\nC. الشارقة\nD. العين\nAnswer:",
    "options": ["A", "B", "C", "D"],
}
ENGLISH = {
    "prompt": "The capital of the United Arab Emirates (أبوظبي) lies on",
    "options": ["an island", "a mountain", "a lake", "the moon"],
}


def sha(text):
    return hashlib.sha256(text.encode()).hexdigest()


def choice(number, right, metric="acc", prompt=ENGLISH["prompt"], options=ENGLISH["options"], gold=0, delimiter=" "):
    """A line of a samples file: a question with options, answered right or wrong."""
    given = gold if right else (gold + 1) % len(options)
    likelihoods = [-1.0 if n == given else -900.0 for n in range(len(options))]
    return {
        "doc_id": number,
        "doc": {"question": prompt},
        "target": str(gold),
        "arguments": {f"gen_args_{n}": {"arg_0": prompt, "arg_1": delimiter + text} for n, text in enumerate(options)},
        "resps": [[[str(value), "False"]] for value in likelihoods],
        "filtered_resps": [[str(value), "False"] for value in likelihoods],
        "filter": "none",
        "metrics": [metric],
        "doc_hash": sha(f"{prompt}{number}"),
        "prompt_hash": sha(prompt),
        "target_hash": sha(str(gold)),
        metric: float(right),
    }


def written(number, right, answer, target, prompt="السؤال: ما هي العاصمة؟\nالجواب:"):
    """A line of a samples file: an answer that the model wrote."""
    return {
        "doc_id": number,
        "target": target,
        "arguments": {"gen_args_0": {"arg_0": prompt, "arg_1": {"until": ["\n"]}}},
        "filtered_resps": [answer],
        "filter": "none",
        "metrics": ["exact_match"],
        "doc_hash": sha(f"{prompt}{number}"),
        "prompt_hash": sha(prompt),
        "target_hash": sha(target),
        "exact_match": float(right),
    }


class Results:
    """The results of one model, as they are put together."""

    def __init__(self, name="my-model", parameters=1_300_000_000, dtype="torch.bfloat16", date=1_700_000_000.0):
        self.samples = {}
        self.found = {
            "results": {},
            "group_subtasks": {},
            "configs": {},
            "versions": {},
            "n-shot": {},
            "higher_is_better": {},
            "n-samples": {},
            "config": {
                "model": "hf",
                "model_args": {"pretrained": name},
                "model_num_parameters": parameters,
                "model_dtype": dtype,
                "limit": None,
            },
            "date": date,
            "lm_eval_version": "0.4.13",
            "task_hashes": {},
            "model_source": "hf",
            "model_name": name,
            "chat_template_sha": None,
        }

    def task(self, name, metric, value, count=1000, total=None, shots=0, error=..., samples=(), higher=True):
        """A task; the standard error is that of a mean of `count` ones and zeros."""
        error = math.sqrt(value * (1 - value) / (count - 1)) if error is ... else error
        found = self.found
        found["results"][name] = {
            "name": name,
            "alias": name,
            "sample_len": count,
            f"{metric},none": value,
            f"{metric}_stderr,none": error,
        }
        found["configs"][name] = {"task": name, "target_delimiter": " "}
        found["versions"][name] = 1.0
        found["n-shot"][name] = shots
        found["higher_is_better"][name] = {metric: higher}
        found["n-samples"][name] = {"original": total or count, "effective": count}
        found["task_hashes"][name] = sha(name)
        if samples:
            self.samples[name] = samples
        return self

    def group(self, name, metric, below, value, error):
        """A group of tasks or groups, which are there."""
        found = self.found
        found["results"][name] = {
            "name": name,
            "alias": name,
            f"{metric},none": value,
            f"{metric}_stderr,none": error,
        }
        found["group_subtasks"][name] = list(below)
        found["versions"][name] = "1"
        found["n-shot"][name] = 0
        found["higher_is_better"][name] = {metric: True}
        return self

    def write(self, folder, stamp=STAMP):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"results_{stamp}.json").write_text(
            json.dumps(self.found, ensure_ascii=False, indent=2), encoding="utf-8"
        )
        for name, lines in self.samples.items():
            text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
            (folder / f"samples_{name}_{stamp}.jsonl").write_text(text, encoding="utf-8")
        return folder


ENGLISH_TASKS = {
    "mmlu": ("acc", "MMLU", 14042),
    "race": ("acc", "RACE", 1045),
    "hellaswag": ("acc_norm", "Hellaswag", 10042),
    "piqa": ("acc_norm", "PIQA", 1838),
    "boolq": ("acc", "BoolQA", 3270),
    "social_iqa": ("acc", "SIQA", 1954),
    "arc_challenge": ("acc_norm", "ARC-Challenge", 1172),
    "openbookqa": ("acc_norm", "OpenBookQA", 500),
    "winogrande": ("acc", "Winogrande", 1267),
    "truthfulqa_mc2": ("acc", "TruthfulQA", 817),
    "crows_pairs_english": ("pct_stereotype", "CrowS-Pairs", 1677),
}


def questions(metric, prompt, options, number=6):
    return [choice(n, n % 2 == 0, metric, prompt, options, gold=n % len(options)) for n in range(number)]


def card_run(scores, name="my-model", shift=0.0, **model):
    """All columns that can be compared, and others, with the published scores of a model, moved by `shift` points."""
    results = Results(name, **model)
    for task, (metric, column, count) in ENGLISH_TASKS.items():
        higher = task != "crows_pairs_english"
        samples = questions(metric, **ENGLISH) if higher else ()
        results.task(task, metric, (scores["en"][column] + shift) / 100, count, samples=samples, higher=higher)
    value = (scores["ar"]["ArabicMMLU"] + shift) / 100
    parts = {"arabicmmlu_civics_high_school": 8000, "arabicmmlu_biology_high_school": 6575}
    for part, count in parts.items():
        results.task(part, "acc", value, count, samples=questions("acc", **ARABIC))
    results.group("arabicmmlu_stem", "acc", ["arabicmmlu_biology_high_school"], value, 0.006)
    results.group("arabicmmlu_social_science", "acc", ["arabicmmlu_civics_high_school"], value, 0.006)
    results.group("arabicmmlu", "acc", ["arabicmmlu_stem", "arabicmmlu_social_science"], value, 0.004)
    results.task("arabic_exams", "acc", 0.4, 537, samples=questions("acc", **ARABIC))
    results.task("arabic_mt_hellaswag", "acc_norm", 0.5, 9171)
    answers = [written(0, True, " أبوظبي", "أبوظبي"), written(1, False, "Dubai <b>", "أبوظبي")]
    results.task("demo_ar", "exact_match", 0.5, 24, samples=answers)
    return results
