"""How the benchmark of document search counts, and that its questions have answers."""

import math
from pathlib import Path

import pytest

from bench.search import Question, count_relevant, ndcg, read_questions, write_corpus


def test_the_best_ranking_has_a_gain_of_one() -> None:
    assert ndcg([1, 0, 0], relevant=1, depth=3) == 1
    assert ndcg([1, 1, 0], relevant=2, depth=3) == 1


def test_a_result_counts_less_the_later_it_comes() -> None:
    assert ndcg([0, 1, 0], relevant=1, depth=3) == pytest.approx(1 / math.log2(3))
    assert ndcg([0, 0, 1], relevant=1, depth=3) == pytest.approx(0.5)
    assert ndcg([0, 1, 1], relevant=2, depth=3) == pytest.approx((1 / math.log2(3) + 0.5) / (1 + 1 / math.log2(3)))


def test_only_results_down_to_the_depth_count() -> None:
    assert ndcg([0, 0, 1], relevant=1, depth=2) == 0
    assert ndcg([1, 1, 1], relevant=3, depth=2) == 1


def test_answers_that_were_not_found_lower_the_gain() -> None:
    assert ndcg([], relevant=1, depth=10) == 0
    assert ndcg([1], relevant=2, depth=10) == pytest.approx(1 / (1 + 1 / math.log2(3)))


def test_a_chunk_answers_where_it_is_of_the_document_and_holds_the_phrase() -> None:
    question = Question("How tall is it?", "words", "tower", "202 feet tall")
    assert question.gain("tower", "The Monument is 202\n  feet tall.") == 1
    assert question.gain("tower", "The Monument is tall.") == 0
    assert question.gain("bridge", "The Monument is 202 feet tall.") == 0


def test_every_question_has_its_answer_in_the_corpus(tmp_path: Path) -> None:
    questions = read_questions()
    assert len({one.question for one in questions}) == len(questions)
    assert all(count_relevant(questions, write_corpus(tmp_path, questions)))


def test_a_question_whose_answer_is_gone_is_named(tmp_path: Path) -> None:
    (tmp_path / "tower.md").write_text("The Monument is tall.")
    with pytest.raises(ValueError, match="How tall is it"):
        count_relevant([Question("How tall is it?", "words", "tower", "202 feet tall")], [tmp_path / "tower.md"])
