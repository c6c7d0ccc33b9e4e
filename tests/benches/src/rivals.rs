//! Who takes part: our rings, the C macros by each compiler, both under the flags of a kernel too, and virtio.
//!
//! What isn't ours in this very program is compiled into shared objects in a folder, when it is measured.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use libloading::Library;

use crate::virtio;
use crate::work::{Blk, NetRx, NetTx, Run, Work, ours};

/// What is in the slots. The names are those of the functions in `c/ring.c`.
pub const SHAPES: [&str; 4] = ["blk1", "blk11", "net_tx", "net_rx"];

/// Requests before the other end runs.
pub const BATCHES: [u32; 3] = [1, 8, 32];

/// One implementation of the workload.
#[derive(Debug)]
pub struct Rival {
    /// What it is called.
    pub name: &'static str,
    /// Whether it is ours, and its counts have a baseline.
    pub ours: bool,
    /// Its functions, in the order of [`SHAPES`].
    pub works: [Option<Work>; 4],
}

/// A shared object that takes part.
struct Object {
    name: &'static str,
    file: &'static str,
    compiler: Option<&'static str>,
    kernel: bool,
}

/// As an optimised program, or as kernels are: without vector registers, and optimised as most of them.
const USER_FLAGS: &[&str] = &["-O3"];
const KERNEL_FLAGS: &[&str] = &["-O2", "-mno-sse", "-mgeneral-regs-only", "-mno-red-zone", "-ffreestanding"];

const OBJECTS: [Object; 5] = [
    Object { name: "C gcc", file: "gcc.so", compiler: Some("gcc"), kernel: false },
    Object { name: "C clang", file: "clang.so", compiler: Some("clang"), kernel: false },
    Object { name: "ours, kernel", file: "bare.so", compiler: None, kernel: true },
    Object { name: "C gcc, kernel", file: "gcc-kernel.so", compiler: Some("gcc"), kernel: true },
    Object { name: "C clang, kernel", file: "clang-kernel.so", compiler: Some("clang"), kernel: true },
];

/// Compiles all that takes part into `folder`. Returns what is missing here, and why.
pub fn compile(folder: &Path) -> Vec<String> {
    let mut missing = Vec::new();
    for object in &OBJECTS {
        let to = folder.join(object.file);
        let made = match object.compiler {
            Some(compiler) => compile_c(compiler, if object.kernel { KERNEL_FLAGS } else { USER_FLAGS }, &to),
            None => compile_bare(&to),
        };
        if let Err(error) = made {
            missing.push(format!("{}: {error:#}", object.name));
        }
    }
    missing
}

fn package() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn run(command: &mut Command) -> Result<()> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command.output().with_context(|| format!("{program} can't be started"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.success(),
        "{program}: {}",
        said.lines().find(|line| line.contains("error")).unwrap_or(&said)
    );
    Ok(())
}

fn compile_c(compiler: &str, flags: &[&str], to: &Path) -> Result<()> {
    let mut command = Command::new(compiler);
    command.args(["-std=gnu11", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"]).args(flags);
    run(command.arg("-o").arg(to).arg(package().join("c/ring.c"))).context("Debian's gcc, clang, libxen-dev")
}

/// Compiles this package for the bare target, and links it so that a program of the host can load it.
pub(crate) fn compile_bare(to: &Path) -> Result<()> {
    let workspace = package().ancestors().nth(2).context("the package stands in a workspace")?;
    let target = env::var_os("CARGO_TARGET_DIR").map_or_else(|| "target".into(), PathBuf::from);
    let target = workspace.join(target).join("benches");
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(workspace);
    cargo.args([
        "rustc",
        "--quiet",
        "--profile",
        "kernel",
        "--package",
        "benches",
        "--lib",
        "--crate-type",
        "staticlib",
    ]);
    cargo.args(["--target", "x86_64-unknown-none", "--target-dir"]).arg(&target);
    // In place of the fixed addresses that .cargo/config.toml has for the guest.
    cargo.env_remove("CARGO_ENCODED_RUSTFLAGS").env("RUSTFLAGS", "-Crelocation-model=pic");
    run(&mut cargo)?;
    let mut link = Command::new("cc");
    link.args(["-shared", "-nostdlib", "-Wl,-Bsymbolic", "-Wl,--gc-sections"]);
    for shape in SHAPES {
        for function in ["state_size", "open", "run", "front", "back"] {
            link.arg(format!("-Wl,-u,{shape}_{function}"));
        }
    }
    for function in ["open", "submit", "serve", "complete", "copy", "bytes"] {
        link.arg(format!("-Wl,-u,block_{function}"));
    }
    for function in ["open", "submit", "handle", "raise", "scan"] {
        link.arg(format!("-Wl,-u,fleet_{function}"));
    }
    run(link.arg("-o").arg(to).arg(target.join("x86_64-unknown-none/kernel/libbenches.a")))
}

/// Returns all whose objects are in the folder.
///
/// # Errors
/// An object is there and can't be used.
pub fn load(folder: &Path) -> Result<Vec<Rival>> {
    let own = [Some(ours::<Blk<1>>()), Some(ours::<Blk<11>>()), Some(ours::<NetTx>()), Some(ours::<NetRx>())];
    let mut rivals = vec![Rival { name: "ours", ours: true, works: own }];
    for object in &OBJECTS {
        let path = folder.join(object.file);
        if !path.exists() {
            continue;
        }
        // SAFETY: we have compiled it, and it does nothing when it is loaded.
        let library = unsafe { Library::new(&path) }.with_context(|| path.display().to_string())?;
        // It stays as long as the program.
        let library = Box::leak(Box::new(library));
        let mut works = [None; 4];
        for (work, shape) in works.iter_mut().zip(SHAPES) {
            *work = Some(work_of(library, shape)?);
        }
        rivals.push(Rival { name: object.name, ours: object.compiler.is_none(), works });
    }
    rivals.push(Rival {
        name: "virtio",
        ours: false,
        works: [Some(virtio::work::<1>()), Some(virtio::work::<11>()), None, None],
    });
    Ok(rivals)
}

fn work_of(library: &'static Library, shape: &str) -> Result<Work> {
    let name = |function| format!("{shape}_{function}");
    // SAFETY: both sources give the functions of these names these types.
    unsafe {
        Ok(Work {
            state_size: *library.get(name("state_size").as_bytes())?,
            open: *library.get(name("open").as_bytes())?,
            run: *library.get::<Run>(name("run").as_bytes())?,
            ends: Some((*library.get(name("front").as_bytes())?, *library.get(name("back").as_bytes())?)),
        })
    }
}

/// A ring that is open: the page, and the state of both ends.
#[derive(Debug)]
pub struct Opened {
    work: Work,
    page: Box<Page>,
    state: Box<State>,
}

#[derive(Debug)]
#[repr(align(4096))]
struct Page([u8; 4096]);

#[derive(Debug)]
#[repr(align(128))]
struct State([u8; 1024]);

/// A pointer that another thread may have.
#[derive(Clone, Copy)]
struct Sent(*mut u8);

// SAFETY: the two ends of a state share nothing but the ring, which is made for that.
unsafe impl Send for Sent {}

impl Sent {
    fn get(self) -> *mut u8 {
        self.0
    }
}

impl Opened {
    /// Opens a ring.
    ///
    /// # Errors
    /// It needs more state than there is.
    pub fn new(work: Work) -> Result<Self> {
        let mut opened = Self { work, page: Box::new(Page([0; 4096])), state: Box::new(State([0; 1024])) };
        if (work.state_size)() > size_of::<State>() as u64 {
            bail!("more than {} bytes of state", size_of::<State>());
        }
        // SAFETY: both are ours, aligned, and large enough.
        unsafe { (work.open)(opened.page.0.as_mut_ptr(), opened.state.0.as_mut_ptr()) };
        Ok(opened)
    }

    /// Runs both ends in turns; returns the sum of what was seen.
    pub fn run(&mut self, rounds: u64, batch: u32) -> u64 {
        measured(self.work.run, self.state.0.as_mut_ptr(), rounds, batch)
    }

    /// Runs the ends in two threads, if there are such, and returns how long it took from when both were at it.
    pub fn run_ends(&mut self, rounds: u64, batch: u32) -> Option<Duration> {
        let (front, back) = self.work.ends?;
        let state = Sent(self.state.0.as_mut_ptr());
        let took = thread::scope(|scope| {
            // SAFETY: `new` has opened it, and each end has one thread.
            scope.spawn(move || unsafe { back(state.get(), rounds + 1, batch) });
            // SAFETY: as above.
            unsafe { front(state.get(), 1, batch) };
            let start = Instant::now();
            // SAFETY: as above.
            unsafe { front(state.get(), rounds, batch) };
            start.elapsed()
        });
        Some(took)
    }
}

/// What callgrind looks for: it counts what happens in here.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn xenlab_measured(run: Run, state: *mut u8, rounds: u64, batch: u32) -> u64 {
    // SAFETY: `Opened::run` has the state.
    std::hint::black_box(unsafe { run(state, rounds, batch) })
}

fn measured(run: Run, state: *mut u8, rounds: u64, batch: u32) -> u64 {
    xenlab_measured(std::hint::black_box(run), state, rounds, batch)
}
