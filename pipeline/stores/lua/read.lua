-- fenced
-- KEYS: lease, stream. ARGV: token, group, consumer, count, id ('>' for new entries, else own history after it).
return redis.call('XREADGROUP', 'GROUP', ARGV[2], ARGV[3], 'COUNT', ARGV[4], 'STREAMS', KEYS[2], ARGV[5])
