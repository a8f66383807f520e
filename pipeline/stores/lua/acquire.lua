-- after: run
-- Take a free lease. KEYS: lease, fence. ARGV: owner, ttl in ms. The token only grows; it starts from the clock, so that
-- it does over a Redis that lost its memory, too. It ends in the run: also under a clock that is behind it is no other's.
if redis.call('EXISTS', KEYS[1]) == 1 then
  return false
end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local number = math.max((tonumber(redis.call('GET', KEYS[2])) or 0) + 1, now)
local text = string.format('%.0f%010.0f', number, run())
redis.call('SET', KEYS[2], string.format('%.0f', number))
redis.call('HSET', KEYS[1], 'token', text, 'owner', ARGV[1])
redis.call('PEXPIRE', KEYS[1], ARGV[2])
return text
