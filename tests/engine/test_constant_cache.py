from __future__ import annotations

import gc
import weakref

import torch

from dcn_plugin.engine.constant_cache import Derived


def test_a_value_is_made_once_for_the_same_memory_even_through_another_tensor_object() -> None:
    derived, tensor, made = Derived(), torch.ones(4), []
    for one in (tensor, tensor.detach(), tensor.view(4)):
        assert derived("kind", (one, None), lambda: made.append(1) or "value") == "value"
    assert len(made) == 1


def test_another_kind_tensor_shape_order_or_dtype_is_another_value() -> None:
    derived, tensor = Derived(), torch.ones(2, 2)
    others = [tensor.clone(), tensor[:1], tensor.t(), tensor.view(torch.int32), None]
    made = [derived("kind", (one,), object) for one in (tensor, *others)]
    made.append(derived("other kind", (tensor,), object))
    assert len({id(one) for one in made}) == len(made)


def test_the_memory_of_an_entry_cannot_become_another_tensors() -> None:
    derived, tensor = Derived(), torch.ones(1000)
    first = derived("kind", (tensor,), object)
    del tensor
    others = [torch.ones(1000) for _ in range(20)]
    assert all(derived("kind", (one,), object) is not first for one in others)


def test_what_is_forgotten_is_freed_and_the_rest_stays() -> None:
    class Value:
        pass

    derived, gone, stays = Derived(), torch.ones(3), torch.ones(3)
    value = weakref.ref(derived("kind", (gone, stays), Value))
    other = derived("kind", (stays,), Value)
    derived.forget([gone, None])
    gc.collect()
    assert value() is None
    assert derived("kind", (stays,), Value) is other
