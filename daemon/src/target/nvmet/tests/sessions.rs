//! How many controllers there are, for metrics.

use super::*;

#[test]
fn controllers_of_ours_are_counted_where_the_kernel_lists_them() {
    for (kernel, is_listed) in [(SimKernel::default(), true), (BLIND, false)] {
        let mut s = Stand::new(kernel);
        let count = |s: &Stand| Protocol::sessions(&s.target, &soon()).unwrap();
        assert_eq!(count(&s), is_listed.then_some(0));
        s.converge(Scope::All, &desired(&[(0, &[0, 1]), (1, &[0])])).unwrap();
        s.connect(0, 0, FIRST_PORT).unwrap();
        s.connect(0, 1, FIRST_PORT).unwrap();
        s.connect(1, 0, FIRST_PORT).unwrap();
        assert_eq!(count(&s), is_listed.then_some(3));
    }
}
