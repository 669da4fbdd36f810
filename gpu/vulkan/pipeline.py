"""One shader and its variants: pipelines by mode, dimension and number of neighbours."""

from __future__ import annotations

from enum import IntEnum
from importlib.resources import files
from typing import Any, Final, NamedTuple

from mldb.errors import LimitError
from mldb.gpu.vulkan import errors as vk_errors
from mldb.gpu.vulkan.context import Context

SHADER: Final = "langevin.spv"

QUADS_PER_LANE_MAX: Final = 128
"""Registers bound the rows: a subgroup of 8 holds 4,096 components, one of 32 holds 16,384."""
WINDOWS: Final = 4
"""Buffers that a table may be split into; the shader has as many bindings."""

PARAMETERS, KEYS, ROWS, EXTRA, ENDS, ACCEPTED, TABLE = range(7)
"""The bindings of the shader."""
UNIFORM: Final = (PARAMETERS,)
STORAGE: Final = (KEYS, EXTRA, ENDS, ACCEPTED)
TEXELS: Final = (ROWS, TABLE)

SUBGROUPS_PER_GROUP: Final = {"cpu": 8}
SUBGROUPS_PER_GROUP_GPU: Final = 4


class ShaderMode(IntEnum):
    """What the shader computes; the numbers are those of its source."""

    WORDS = 0
    NORMALS = 1
    ISOTROPIC = 2
    SELF = 3
    MIXTURE = 4


class Variant(NamedTuple):
    """What a pipeline is specialised for."""

    mode: ShaderMode
    dim: int
    neighbours: int = 1
    mala: bool = False
    windows: int = 1


def shader_code() -> bytes:
    """Return the SPIR-V of the shader that ships with the package."""
    return files("mldb.gpu.shaders").joinpath(SHADER).read_bytes()


def descriptor_type(api: Any, binding: int) -> Any:
    """Return the VkDescriptorType of a binding."""
    if binding in UNIFORM:
        return api.VK_DESCRIPTOR_TYPE_UNIFORM_BUFFER
    if binding in TEXELS:
        return api.VK_DESCRIPTOR_TYPE_UNIFORM_TEXEL_BUFFER
    return api.VK_DESCRIPTOR_TYPE_STORAGE_BUFFER


class Pipelines:
    """The shader module, the layouts, and the pipelines made so far.

    Closed before its context. Pipelines are never dropped: each is some kilobytes, and a program
    uses few.
    """

    def __init__(self, context: Context, *, subgroups: int | None = None) -> None:
        api, device = context.api, context.device
        self.context = context
        info = context.info
        wished = subgroups or SUBGROUPS_PER_GROUP.get(info.kind, SUBGROUPS_PER_GROUP_GPU)
        self.subgroups = max(1, min(wished, info.limits.invocations // info.lanes))
        """How many splats a workgroup moves; it does not change a bit of any result."""
        code = shader_code()
        with vk_errors.translated(api, "load the shader", device=info.label):
            module = api.VkShaderModuleCreateInfo(codeSize=len(code), pCode=code)
            self._module = api.vkCreateShaderModule(device, module, None)
            self.set_layout = self._make_set_layout()
            layout = api.VkPipelineLayoutCreateInfo(pSetLayouts=[self.set_layout])
            self.layout = api.vkCreatePipelineLayout(device, layout, None)
        self._made: dict[Variant, Any] = {}

    def _make_set_layout(self) -> Any:
        api = self.context.api
        bindings = [
            api.VkDescriptorSetLayoutBinding(
                binding=binding,
                descriptorType=descriptor_type(api, binding),
                descriptorCount=WINDOWS if binding == TABLE else 1,
                stageFlags=api.VK_SHADER_STAGE_COMPUTE_BIT,
            )
            for binding in (*UNIFORM, *STORAGE, *TEXELS)
        ]
        info = api.VkDescriptorSetLayoutCreateInfo(pBindings=bindings)
        return api.vkCreateDescriptorSetLayout(self.context.device, info, None)

    def __len__(self) -> int:
        """The number of pipelines made."""
        return len(self._made)

    def __contains__(self, variant: Variant) -> bool:
        """Whether the pipeline of this variant was made."""
        return variant in self._made

    def get(self, variant: Variant) -> Any:
        """Return the pipeline of a variant, made at its first use. Raises LimitError."""
        pipeline = self._made.get(variant)
        if pipeline is None:
            check_fits_registers(self.context, variant)
            with vk_errors.translated(
                self.context.api, "make a pipeline", device=self.context.info.label
            ):
                pipeline = self._made[variant] = self._make(variant)
        return pipeline

    def _make(self, variant: Variant) -> Any:
        api, ffi, info = self.context.api, self.context.api.ffi, self.context.info
        constants = (
            info.lanes * self.subgroups,
            variant.mode,
            info.lanes,
            variant.dim,
            variant.neighbours,
            variant.mala,
            variant.windows,
        )
        values = ffi.new("uint32_t[]", [int(value) for value in constants])
        entries = [
            api.VkSpecializationMapEntry(constantID=number, offset=4 * number, size=4)
            for number in range(len(constants))
        ]
        special = api.VkSpecializationInfo(
            pMapEntries=entries, dataSize=ffi.sizeof(values), pData=ffi.cast("void*", values)
        )
        width, flags = None, 0
        if self.context.sized and info.lanes_range[0] != info.lanes_range[1]:
            width = api.VkPipelineShaderStageRequiredSubgroupSizeCreateInfo(
                requiredSubgroupSize=info.lanes
            )
            flags = api.VK_PIPELINE_SHADER_STAGE_CREATE_REQUIRE_FULL_SUBGROUPS_BIT
        stage = api.VkPipelineShaderStageCreateInfo(
            pNext=width,
            flags=flags,
            stage=api.VK_SHADER_STAGE_COMPUTE_BIT,
            module=self._module,
            pName="main",
            pSpecializationInfo=special,
        )
        create = api.VkComputePipelineCreateInfo(stage=stage, layout=self.layout)
        return api.vkCreateComputePipelines(self.context.device, None, 1, [create], None)[0]

    def close(self) -> None:
        """Destroy all pipelines; the device must be idle."""
        api, device = self.context.api, self.context.device
        for pipeline in self._made.values():
            api.vkDestroyPipeline(device, pipeline, None)
        self._made.clear()
        api.vkDestroyPipelineLayout(device, self.layout, None)
        api.vkDestroyDescriptorSetLayout(device, self.set_layout, None)
        api.vkDestroyShaderModule(device, self._module, None)


def check_fits_registers(context: Context, variant: Variant) -> None:
    """Refuse rows that do not fit the registers of a subgroup. Raises LimitError."""
    if variant.mode in {ShaderMode.WORDS, ShaderMode.NORMALS}:
        return
    most = 4 * QUADS_PER_LANE_MAX * context.info.lanes
    if variant.dim > most:
        raise LimitError(
            f"rows have {variant.dim} dimensions; {context.info.label} holds up to {most} in the "
            "registers of a subgroup. Use device='torch' or 'numpy'"
        )
