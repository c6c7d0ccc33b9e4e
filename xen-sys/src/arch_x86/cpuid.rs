//! `arch-x86/cpuid.h`: the CPUID leaves by which a guest finds Xen.

/// First leaf of Xen, unless another hypervisor interface stands before it; then it is a multiple of 0x100 further.
pub const XEN_CPUID_FIRST_LEAF: u32 = 0x4000_0000;
/// EBX of the first leaf.
pub const XEN_CPUID_SIGNATURE_EBX: u32 = 0x566e_6558;
/// ECX of the first leaf.
pub const XEN_CPUID_SIGNATURE_ECX: u32 = 0x6558_4d4d;
/// EDX of the first leaf.
pub const XEN_CPUID_SIGNATURE_EDX: u32 = 0x4d4d_566e;
/// Bit of the third leaf's ECX: [`crate::xen::MMU_PT_UPDATE_PRESERVE_AD`] works.
pub const XEN_CPUID_FEAT1_MMU_PT_UPDATE_PRESERVE_AD: u32 = 1 << 0;
/// Bit of the fifth leaf's EAX: accesses to the local APIC's page are virtualised by hardware.
pub const XEN_HVM_CPUID_APIC_ACCESS_VIRT: u32 = 1 << 0;
/// Bit of the fifth leaf's EAX: x2APIC registers are virtualised by hardware.
pub const XEN_HVM_CPUID_X2APIC_VIRT: u32 = 1 << 1;
/// Bit of the fifth leaf's EAX: memory of other domains is mapped in the IOMMU.
pub const XEN_HVM_CPUID_IOMMU_MAPPINGS: u32 = 1 << 2;
/// Bit of the fifth leaf's EAX: EBX is the vcpu's number.
pub const XEN_HVM_CPUID_VCPU_ID_PRESENT: u32 = 1 << 3;
/// Bit of the fifth leaf's EAX: ECX is the domain's number.
pub const XEN_HVM_CPUID_DOMID_PRESENT: u32 = 1 << 4;
/// Bit of the fifth leaf's EAX: interrupt messages reach APIC ids beyond 255.
pub const XEN_HVM_CPUID_EXT_DEST_ID: u32 = 1 << 5;
/// Bit of the fifth leaf's EAX: each vcpu can have an event vector of its own.
pub const XEN_HVM_CPUID_UPCALL_VECTOR: u32 = 1 << 6;
/// Mask of the sixth leaf's EBX: bits of a machine address.
pub const XEN_CPUID_MACHINE_ADDRESS_WIDTH_MASK: u32 = 0xff;
/// Highest leaf, counted from the first.
pub const XEN_CPUID_MAX_NUM_LEAVES: u32 = 5;
