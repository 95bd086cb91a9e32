// Package images sets godwit's qcow2 and Debian's qemu-img and qemu-io to the
// same disks and lets each judge what the other wrote.
//
//	           random plan: layers, and writes to each
//	              |                         |
//	         qemu-img, qemu-io      godwit image, blockfile
//	              |                         |
//	            images                    images
//	              |                         |
//	blockfile reads them,        qemu-img check, qemu-img compare
//	godwit image check           with the model as a raw file
//
// A plan is made from a seed, which every failure names. The model is the disk
// as it must read, held in memory; what a discard leaves behind is not ours to
// say, so those bytes count only once they are written again.
//
//	plan_test    random plans and the model
//	qemu_test    plans carried out by qemu-img and qemu-io
//	godwit_test  plans carried out by godwit
//	agree_test   each reads the other's
//	repair_test  tables spoilt, repaired by godwit, judged by qemu-img
//	crash_test   writers killed at random moments: this program again, told by an
//	             environment variable (crash_child_test)
//
// GODWIT_SOAK=1 chooses the long forms.
package images
