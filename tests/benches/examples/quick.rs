#![allow(missing_docs, unreachable_pub, clippy::all, clippy::undocumented_unsafe_blocks)]
use benches::work::*;
use std::hint::black_box;
#[repr(align(4096))] struct P([u8;4096]);
#[repr(align(128))] struct St([u8;1024]);
#[inline(never)] #[unsafe(no_mangle)] extern "C" fn xenlab_measured(f: unsafe extern "C" fn(*mut u8,u64,u32)->u64, s:*mut u8, r:u64,b:u32)->u64 { unsafe { black_box(f)(s,r,b) } }
fn main(){
  let mut ws:Vec<(String,Work)>=vec![];
  for (lib,n) in [("","ours"),("/tmp/probe/bare.so","bare"),("/tmp/probe/gcc.so","gcc"),("/tmp/probe/clang.so","clang"),("/tmp/probe/gcck.so","gcck"),("/tmp/probe/clangk.so","clangk")] {
   for k in ["blk1","blk11","net_tx","net_rx"] {
    if lib=="" { ws.push((format!("{n} {k}"), match k {"blk1"=>ours::<Blk<1>>(),"blk11"=>ours::<Blk<11>>(),"net_tx"=>ours::<NetTx>(),_=>ours::<NetRx>()})); continue; }
    unsafe { let Ok(l)=libloading::Library::new(lib) else {continue}; let l=Box::leak(Box::new(l));
     macro_rules! g {($s:expr)=>{ *l.get(format!("{k}_{}\0",$s).as_bytes()).unwrap() }}
     ws.push((format!("{n} {k}"), Work{state_size:g!("state_size"),open:g!("open"),run:g!("run"),front:g!("front"),back:g!("back")}));
    }}}
  for (n,w) in &ws { let segs: &[u32] = &[1];
   for &s in segs { for b in [1u32,8,32] {
    let p=Box::leak(Box::new(P([0;4096]))); let st=Box::leak(Box::new(St([0;1024]))); assert!((w.state_size)()<=1024);
    unsafe{ (w.open)(p.0.as_mut_ptr(),st.0.as_mut_ptr()); (w.run)(st.0.as_mut_ptr(),8,b); let r=4096/b as u64;
      if std::env::args().len()>1 { let mut best=f64::MAX; for _ in 0..400 { let t=std::time::Instant::now(); (w.run)(st.0.as_mut_ptr(),r,b); best=best.min(t.elapsed().as_nanos() as f64/4096.);} println!("{n} s{s} b{b} 0 {best:.2}"); continue; }
      let t=std::time::Instant::now(); let sum=xenlab_measured(w.run,st.0.as_mut_ptr(),r,b);
      println!("{n} s{s} b{b} {sum} {:.1}", t.elapsed().as_nanos() as f64/4096.); }
  }}}
}
