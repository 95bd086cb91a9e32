package virtio

// Feature bits that every device may have: virtio 1.2, section 6.
const (
	FeatureIndirectDesc = 1 << 28 // VIRTIO_F_INDIRECT_DESC
	FeatureEventIdx     = 1 << 29 // VIRTIO_F_EVENT_IDX
	FeatureVersion1     = 1 << 32 // VIRTIO_F_VERSION_1
)

// RingFeatures are those that virtio/queue implements. A transport offers them
// for every device.
const RingFeatures = FeatureIndirectDesc | FeatureEventIdx | FeatureVersion1

// Device types: virtio 1.2, section 5.
const (
	TypeNet     = 1
	TypeBlock   = 2
	TypeConsole = 3
	TypeEntropy = 4
	TypeBalloon = 5
	TypeVsock   = 19
)
