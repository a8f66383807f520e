-- Append one entry, unless a body in it was appended before. KEYS: stream, books, idempotency.
-- ARGV: events, event count, dead letters, dead letter count, retention of keys in ms, key digests...
if redis.call('EXISTS', KEYS[1]) == 0 then
  return redis.error_reply('NOSTREAM')
end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local repeated = {}
for i = 6, #ARGV do
  local seen = redis.call('ZSCORE', KEYS[3], ARGV[i])
  if seen and now - tonumber(seen) <= tonumber(ARGV[5]) then
    table.insert(repeated, ARGV[i])
  end
end
if #repeated > 0 then
  return repeated
end
-- The first write must be one that adds: a full Redis refuses only that, and lets what follows a write pass.
for i = 6, #ARGV do
  redis.call('ZADD', KEYS[3], now, ARGV[i])
end
if #ARGV > 5 then
  redis.call('ZREMRANGEBYSCORE', KEYS[3], '-inf', now - ARGV[5])
end
redis.call('HINCRBY', KEYS[2], 'accepted', ARGV[2] + ARGV[4])
return redis.call('XADD', KEYS[1], '*', 'e', ARGV[1], 'n', ARGV[2], 'x', ARGV[3], 'm', ARGV[4])
