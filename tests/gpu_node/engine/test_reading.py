"""What reading asks of the scheduler, and numbers from pieces that come in order."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from gpu_node.engine.mailbox import Call, Outlet
from gpu_node.engine.reading import EmbeddingJob, InferenceJob
from gpu_node.engine.sequence import EmbeddingRequest, InferenceRequest, InputVectors
from gpu_node.errors import GenerationFailed
from tests.gpu_node.engine.desk import AtOnce


def call() -> Call:
    return Call(Outlet(AtOnce()))


def embedding(*texts: tuple[int, ...], **options: Any) -> EmbeddingJob:
    return EmbeddingJob(EmbeddingRequest(("",) * len(texts), 100, **options), texts, call())


def rows(*values: float) -> Any:
    return np.array([[value, 2 * value] for value in values], dtype=np.float32)


def test_caller_and_salt_reach_the_scheduler() -> None:
    request = InferenceRequest((1, 2), "hidden", True, caller="ben", cache_salt="s")
    asked = [InferenceJob(request, call()).pending[0], embedding((1, 2), caller="ben", cache_salt="s").pending[0]]
    assert [(one.caller, one.salt, one.output, one.max_context) for _, one in asked] == [("ben", "s", "hidden", 2)] * 2
    assert [one.last_only for _, one in asked] == [True, False]


def test_means_come_of_all_pieces() -> None:
    job = embedding((1, 2, 3), (4,), normalise=False)
    job.take(0, rows(1, 2), last=False)
    job.take(1, rows(7), last=True)
    job.take(0, rows(6), last=True)
    result = job.result()
    assert result.vectors == ((3.0, 6.0), (7.0, 14.0)) and result.prompt_tokens == 4


def test_vectors_are_cut_before_they_get_the_length_one() -> None:
    job = embedding((1,), dimensions=1)
    job.take(0, rows(5), last=True)
    assert job.result().vectors == ((1.0,),)


def test_a_vector_of_zeros_stays_one() -> None:
    job = embedding((1,))
    job.take(0, rows(0), last=True)
    assert job.result().vectors == ((0.0, 0.0),)


def test_rows_that_come_twice_or_never_or_are_no_numbers_are_an_error() -> None:
    with pytest.raises(GenerationFailed, match="3 rows were computed of 2"):
        embedding((1, 2)).take(0, rows(1, 2, 3), last=True)
    with pytest.raises(GenerationFailed, match="1 rows were computed of 2"):
        InferenceJob(InferenceRequest((1, 2)), call()).take(0, rows(1), last=True)
    with pytest.raises(GenerationFailed, match="not finite"):
        embedding((1,)).take(0, rows(float("nan")), last=True)


def test_pieces_of_an_inference_make_one() -> None:
    job = InferenceJob(InferenceRequest((1, 2, 3)), call())
    job.take(0, rows(1, 2), last=False)
    job.take(0, rows(3), last=True)
    result = job.result()
    assert result.shape == (3, 2)
    assert np.frombuffer(result.data, "<f4").reshape(3, 2).tolist() == rows(1, 2, 3).tolist()


def test_what_comes_in_one_piece_is_handed_on_as_it_is() -> None:
    job = InferenceJob(InferenceRequest((1, 2)), call())
    whole = rows(1, 2)
    job.take(0, whole, last=True)
    whole[0, 0] = 9.0
    assert np.frombuffer(job.result().data, "<f4")[0] == 9.0


def test_embeddings_go_to_the_scheduler_with_a_stand_in_for_each() -> None:
    request = InferenceRequest((), embeddings=InputVectors(bytes(16), (2, 2)))
    vectors = np.zeros((2, 2), np.float32)
    ((_, submission),) = InferenceJob(request, call(), vectors).pending
    assert submission.vectors is vectors and (len(submission.ids), submission.max_context) == (2, 2)
