"""Multiple-choice questions, as the EMS-FL paper tunes on them (Sec. V-B): the length-normalised log-likelihood of each option
given the question decides, and training lowers the cross-entropy over the options.

The question is computed once and shared by its options, and the vocabulary is looked at only where an answer's token is.

Shapes: N questions, P tokens of a question (padded on the left), O options, Q tokens of an option (padded on the right),
D hidden, S scored tokens.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from string import Formatter
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import InputError
from ..moe.view import Batch, View
from ..reading import short
from .objective import Judged
from .rows import missing
from .source import Samples, size

JUDGED_AT_ONCE = 16
WHOLE = re.compile(r"[+-]?[0-9]{1,9}(?:\.0*)?")
"""How a text spells the number of an option."""
Normalise = Literal["tokens", "characters"]


@dataclass(frozen=True)
class MultipleChoice:
    """Score of an option: Σ log p(token) over its tokens, divided by their number or by the option's characters."""

    normalise: Normalise = "tokens"
    metric: str = "accuracy"

    def loss(self, view: View, batch: Batch) -> Tensor:
        """Cross-entropy of the softmax over the options' scores."""
        return F.cross_entropy(self.scores(view, batch), batch["labels"])

    def losses(self, view: View, batch: Batch, devices: int) -> Tensor:
        """See `Objective`."""
        losses_N = F.cross_entropy(self.scores(view, batch), batch["labels"], reduction="none")
        return losses_N.view(devices, -1).mean(dim=1)

    def inputs(self, samples: Batch) -> Batch:
        """The questions."""
        return {"input_ids": samples["question"], "attention_mask": samples["question_mask"]}

    def guess(self, view: View, samples: Samples) -> float:
        """Every option alike: the mean of ln O."""
        options_N = samples["option_mask"].any(dim=-1).sum(dim=-1)
        return float(options_N.double().log().mean())

    def judge(self, view: View, samples: Samples) -> Judged:
        """Share of questions whose best option is the right one."""
        right, loss = 0, 0.0
        with torch.no_grad():
            for at in range(0, size(samples), JUDGED_AT_ONCE):
                batch = {key: value[at : at + JUDGED_AT_ONCE].to(view.device) for key, value in samples.items()}
                scores_NO = self.scores(view, batch)
                right += int((scores_NO.argmax(dim=-1) == batch["labels"]).sum())
                loss += float(F.cross_entropy(scores_NO, batch["labels"], reduction="sum"))
        total = size(samples)
        return Judged(total, loss / total, right / total, {"accuracy": right / total})

    def scores(self, view: View, batch: Batch) -> Tensor:
        """scores_NO; −∞ for options that a question does not have."""
        question_NP, option_NOQ, mask_NOQ = _trimmed(batch)
        N, O, Q = option_NOQ.shape  # noqa: E741  # the shape's letters
        model: Any = view.model
        question_mask_NP = batch["question_mask"][:, -question_NP.shape[1] :]
        positions_NP = (question_mask_NP.cumsum(dim=-1) - 1).clamp(min=0)
        question = model.model(
            input_ids=question_NP, attention_mask=question_mask_NP, position_ids=positions_NP, use_cache=True
        )
        hidden_NOQD = question.last_hidden_state[:, -1, None, None].expand(N, O, 1, -1)  # foretells an option's first token
        if Q > 1:
            cache = question.past_key_values
            cache.batch_repeat_interleave(O)
            input_mask = mask_NOQ[:, :, :-1].reshape(N * O, Q - 1)
            answer = model.model(
                input_ids=option_NOQ[:, :, :-1].reshape(N * O, Q - 1),
                attention_mask=torch.cat([question_mask_NP.repeat_interleave(O, dim=0), input_mask], dim=1),
                position_ids=positions_NP[:, -1:].repeat_interleave(O, dim=0) + torch.arange(1, Q, device=view.device),
                past_key_values=cache,
                use_cache=True,
            )
            hidden_NOQD = torch.cat([hidden_NOQD, answer.last_hidden_state.view(N, O, Q - 1, -1)], dim=2)
        scored_NOQ = mask_NOQ.bool()
        logits_SV = model.lm_head(hidden_NOQD[scored_NOQ]).float()
        log_p_S = logits_SV.log_softmax(dim=-1).gather(-1, option_NOQ[scored_NOQ].unsqueeze(-1)).squeeze(-1)
        log_p_NOQ = torch.zeros(N, O, Q, device=log_p_S.device).masked_scatter(scored_NOQ, log_p_S)
        lengths_NO = mask_NOQ.sum(dim=-1) if self.normalise == "tokens" else batch["option_characters"]
        scores_NO = log_p_NOQ.sum(dim=-1) / lengths_NO.clamp(min=1)
        return scores_NO.masked_fill(~scored_NOQ.any(dim=-1), float("-inf"))


def _trimmed(batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """Without the padding that no question or option of the batch needs."""
    P = int(batch["question_mask"].sum(dim=-1).max())
    Q = int(batch["option_mask"].sum(dim=-1).max())
    return batch["question"][:, -P:], batch["option"][:, :, :Q], batch["option_mask"][:, :, :Q]


@dataclass(frozen=True)
class Columns:
    """Where a row has its question, its options (one list, or several columns) and its answer.

    ``prompt`` is a template with the row's columns in braces; the model continues it with an option, after a space.
    An answer is the number of the right option, from 0, or its letter from A.
    """

    prompt: str = "Question: {question}\nAnswer:"
    options: str | tuple[str, ...] = "choices"
    answer: str = "answer"


def encode(
    rows: Sequence[Mapping[str, Any]],
    tokenizer: Any,
    columns: Columns,
    max_length: int,
    where: str = "data",
    chosen: Sequence[int] | None = None,
) -> Samples:
    """Tokens of questions and options.

    A question that is too long loses its beginning, but for a token that marks it; an option is never cut. ``chosen`` are the
    numbers of the rows that are taken, from 0; all if it is left out.

    Raises:
        InputError: a column or a value is missing, options are no list or no text, an answer names no option, there are fewer
            than two options, or an option alone is longer than ``max_length``.
    """
    questions: list[list[int]] = []
    options: list[list[list[int]]] = []
    characters: list[list[int]] = []
    labels: list[int] = []
    for n in range(len(rows)) if chosen is None else chosen:
        row, at = rows[n], f"{where}, row {n + 1}"
        texts = _options(row, columns, at)
        labels.append(_answer(row, columns, len(texts), at))
        tokens = [tokenizer(f" {text}", add_special_tokens=False)["input_ids"] for text in texts]
        longest = max(map(len, tokens))
        if longest >= max_length or not all(tokens):
            raise InputError(
                f"{at}: an option has {longest if all(tokens) else 0} tokens: must be between 1 and "
                f"{max_length - 1}, one less than task.max_length = {max_length}; make that larger or leave the row out"
            )
        questions.append(_cut(tokenizer(_prompt(row, columns, at))["input_ids"], max_length - longest, tokenizer))
        options.append(tokens)
        characters.append([len(text) for text in texts])
    return _padded(questions, options, characters, labels)


def texts(row: Mapping[str, Any], columns: Columns, at: str) -> tuple[str, list[str]]:
    """The question of a row, with its prompt, and its options; ``at`` opens errors, which are those of `encode`."""
    return _prompt(row, columns, at), _options(row, columns, at)


def _cut(tokens: list[int], length: int, tokenizer: Any) -> list[int]:
    marks = 1 if tokens[0] == tokenizer.bos_token_id and length > 1 else 0
    return tokens if len(tokens) <= length else tokens[:marks] + tokens[len(tokens) - length + marks :]


def _prompt(row: Mapping[str, Any], columns: Columns, at: str) -> str:
    try:
        names = [re.split(r"[.[]", name)[0] for _, name, _, _ in Formatter().parse(columns.prompt) if name is not None]
        for name in names:
            if name in row and missing(row[name]):
                raise InputError(f"{at}: column {name!r} {_how(row[name])}; fill it in, or leave the question out")
        return columns.prompt.format(**row)
    except InputError:
        raise
    except Exception as error:  # a template can ask for anything
        what = f"{type(error).__name__}: {error}"
        if isinstance(error, KeyError):
            near = difflib.get_close_matches(str(error.args[0]), list(row), 1)
            what = f"there is no column {error.args[0]!r}" + (f"; did you mean {near[0]}?" if near else "")
        raise InputError(f"{at}: task.prompt = {columns.prompt!r} does not fit the columns {', '.join(row)}: {what}") from error


def _options(row: Mapping[str, Any], columns: Columns, at: str) -> list[str]:
    names = (columns.options,) if isinstance(columns.options, str) else columns.options
    if unknown := [name for name in names if name not in row]:
        raise InputError(f"{at}: task.options names {unknown[0]!r}, and the columns are {', '.join(row)}; correct the name")
    if not isinstance(columns.options, str):
        return [
            _option(row[name], f"{at}: option {n} of {len(names)} (column {name!r})") for n, name in enumerate(names, start=1)
        ]
    values = row[columns.options]
    if missing(values):
        raise InputError(f"{at}: column {columns.options!r} {_how(values)}; fill it in, or leave the question out")
    if not isinstance(values, list):
        raise InputError(
            f"{at}: column {columns.options!r} holds {short(values)}: must be a list of options; of options in columns "
            'of their own name all, task.options = ["A", "B"]'
        )
    if len(values) < 2:
        raise InputError(f"{at}: {len(values)} option(s); a question needs at least 2")
    where = f"(column {columns.options!r})"
    return [_option(value, f"{at}: option {n} of {len(values)} {where}") for n, value in enumerate(values, start=1)]


def _option(value: Any, at: str) -> str:
    if missing(value) or (isinstance(value, str) and not value.strip()):
        raise InputError(f"{at} {_how(value)}; fill it in, or leave the question out")
    if not isinstance(value, str | int | float):
        raise InputError(f"{at} is {short(value)}: must be a text or a number")
    return str(value)


def _how(value: Any) -> str:
    return "has no value" if value is None else "is blank" if isinstance(value, str) else f"is {value!r}"


def _answer(row: Mapping[str, Any], columns: Columns, options: int, at: str) -> int:
    if columns.answer not in row:
        raise InputError(f"{at}: task.label = {columns.answer!r} is no column; the columns are {', '.join(row)}")
    value = row[columns.answer]
    number = _place(value)
    if missing(value) or (isinstance(value, str) and not value.strip()):
        raise InputError(f"{at}: answer (column {columns.answer!r}) {_how(value)}; fill it in, or leave the question out")
    if number is None:
        raise InputError(f"{at}: answer {short(value)} is neither a whole number nor a single letter; leave the row out")
    if not 0 <= number < options:
        raise InputError(
            f"{at}: answer {short(value)} is outside its {options} options; correct it (numbers start at 0, letters at A)"
        )
    return number


def _place(value: Any) -> int | None:
    """The number that an answer is or spells, or that of its letter."""
    if isinstance(value, str):
        text = value.strip()
        if len(text) == 1 and text.isascii() and text.isalpha():
            return ord(text.upper()) - ord("A")
        return int(float(text)) if WHOLE.fullmatch(text) else None
    if isinstance(value, float):
        return int(value) if value.is_integer() else None
    return value if isinstance(value, int) else None


def _padded(
    questions: list[list[int]], options: list[list[list[int]]], characters: list[list[int]], labels: list[int]
) -> Samples:
    N, P = len(questions), max(map(len, questions))
    O = max(map(len, options))  # noqa: E741  # the shape's letter
    Q = max(len(tokens) for group in options for tokens in group)
    samples = {
        "question": torch.zeros(N, P, dtype=torch.long),
        "question_mask": torch.zeros(N, P, dtype=torch.long),
        "option": torch.zeros(N, O, Q, dtype=torch.long),
        "option_mask": torch.zeros(N, O, Q, dtype=torch.long),
        "option_characters": torch.zeros(N, O),
        "labels": torch.tensor(labels),
    }
    for n, question in enumerate(questions):
        samples["question"][n, P - len(question) :] = torch.tensor(question)
        samples["question_mask"][n, P - len(question) :] = 1
        for o, tokens in enumerate(options[n]):
            samples["option"][n, o, : len(tokens)] = torch.tensor(tokens)
            samples["option_mask"][n, o, : len(tokens)] = 1
            samples["option_characters"][n, o] = characters[n][o]
    return samples
