from collections import Counter

import pytest
from vllm.tokenizers import TokenizerLike, get_tokenizer
from vllm.tokenizers.detokenizer_utils import convert_ids_list_to_tokens

from openai_frontend.streaming.token_texts import remembering

IDS = list(range(0, 49_152, 23)) * 2


@pytest.fixture(scope="module")
def tokenizer(tiny_model_dir) -> TokenizerLike:
    return get_tokenizer(str(tiny_model_dir))


def test_candidates_have_the_texts_that_the_tokenizer_gives_them(tokenizer: TokenizerLike):
    remembered = remembering(tokenizer)
    assert convert_ids_list_to_tokens(remembered, IDS) == convert_ids_list_to_tokens(tokenizer, IDS)


def test_a_token_is_decoded_once(tokenizer: TokenizerLike, monkeypatch: pytest.MonkeyPatch):
    decoded: Counter[int] = Counter()
    decode = type(tokenizer).decode
    monkeypatch.setattr(
        type(tokenizer), "decode", lambda self, ids, *args: (decoded.update(ids), decode(self, ids, *args))[1]
    )
    convert_ids_list_to_tokens(remembering(tokenizer), IDS)
    assert set(decoded) == set(IDS)
    assert set(decoded.values()) == {1}


def test_whole_texts_and_special_tokens_are_the_tokenizers(tokenizer: TokenizerLike):
    remembered = remembering(tokenizer)
    special = tokenizer.all_special_ids[0]
    assert remembered.decode([special]) == tokenizer.decode([special]) != ""
    assert remembered.decode([special], skip_special_tokens=True) == ""
    assert remembered.decode(IDS) == tokenizer.decode(IDS)
    assert remembered.decode(IDS[0]) == tokenizer.decode(IDS[0])
