from __future__ import annotations

from dataclasses import replace

from gpu_node.engine.products.kernels.availability import Target


def claiming_vnni(target: Target, **wrong: str):
    """A library that says it uses VNNI and writes this machine's code, some of it under another kernel's name."""
    from gpu_node.engine.products.kernels.catalogue import catalogue
    from gpu_node.engine.products.kernels.library import KernelLibrary

    known = catalogue()
    sources = {name: known[wrong.get(name, name)] for name in known}
    writers = {name: (lambda name, _, source=source: source(name, target)) for name, source in sources.items()}
    return KernelLibrary(writers, target=replace(target, dots="vnni"))


def test_what_this_machine_has_computes_rightly(kernels):
    from gpu_node.engine.products.kernels.proof import computes_rightly

    assert computes_rightly(kernels.library)


def test_untried_instructions_that_compute_rightly_are_kept(kernels):
    from gpu_node.engine.products.kernels.proof import proven

    library = claiming_vnni(kernels.library.target)
    assert proven(library, lambda _: kernels.library) is library


def test_instructions_that_compute_wrongly_are_not_used(kernels):
    from gpu_node.engine.products.kernels.proof import proven

    library = claiming_vnni(kernels.library.target, packed8_f16="packed4_f16")
    asked = []
    assert proven(library, lambda target: asked.append(target) or kernels.library) is kernels.library
    assert [target.dots for target in asked] == ["portable"]
